//! The HTTP clients. reqwest can't limit the age of a connection or the number of idle ones, and can't close
//! them on demand. So its clients are replaced instead: a replaced client finishes its requests in flight,
//! and its idle connections close when the last one ends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use http::Extensions;
use hyper_util::client::legacy::connect::{Connection, HttpInfo};
use moka::sync::Cache;
use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;
use tower::Service;
use tower::layer::layer_fn;

use crate::dns::resolver::Resolver;
use crate::exchange::response::MAX_HEADERS;
use crate::exchange::tls;
use crate::exchange::trace::Trace;
use crate::settings::{DispatcherError, Settings};

/// Provides the client for each request.
pub(crate) struct Clients {
    factory: Factory,
    /// Maximum number of connections that all clients may open in their lifetime, an upper bound of those
    /// they keep.
    max_kept: usize,
    state: Mutex<State>,
    /// Origins that close idle connections early.
    short_keep_alives: Cache<String, ()>,
}

struct State {
    current: Generation,
    /// Connection counts of replaced clients. A count lives as long as its client may have open connections.
    replaced: Vec<Weak<AtomicUsize>>,
}

struct Factory {
    /// Loaded once, so that building a client needs no file descriptor.
    tls: rustls::ClientConfig,
    resolver: Arc<Resolver>,
    connect_timeout: Duration,
    max_in_flight: usize,
    /// Maximum age of a client, before jitter.
    max_age: Duration,
}

/// The clients in use at one time, built together.
struct Generation {
    normal: reqwest::Client,
    /// For receivers that close idle connections early.
    short_idle: reqwest::Client,
    /// Number of connections opened.
    connections: Arc<AtomicUsize>,
    made_at: Instant,
    max_age: Duration,
}

/// File descriptors reserved for everything but connections to receivers: database, broker, listeners, DNS.
const OTHER_FILES: u64 = 128;
/// Lower bound of `max_kept`, for hosts with very few file descriptors.
const MIN_KEPT: usize = 16;
/// Minimum age of clients before they are replaced for lack of sockets.
const MIN_AGE: Duration = Duration::from_secs(1);
/// How long a connection is used before its host's name is resolved again, and the relative jitter of that.
const MAX_AGE: Duration = Duration::from_secs(60);
const MAX_AGE_JITTER: f64 = 0.1;

/// How long a connection is kept idle. Node and Apache close idle connections after 5 s by default.
const IDLE: Duration = Duration::from_secs(4);
/// [`IDLE`] for receivers that close connections sooner.
const SHORT_IDLE: Duration = Duration::from_millis(500);
/// Minimum `Keep-Alive: timeout` with which [`IDLE`] is safe on a slow path, in seconds.
const MIN_KEEP_ALIVE: u64 = 5;
/// How long a receiver is remembered to close connections early, from the last request to it.
const SHORT_KEEP_ALIVE_TTL: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of origins remembered; beyond it, the least used ones are forgotten.
const MAX_SHORT_KEEP_ALIVES: u64 = 10_000;

impl Clients {
    pub(crate) fn new(settings: &Settings, resolver: Resolver) -> Result<Clients, DispatcherError> {
        let files = getrlimit(Resource::Nofile).current;
        Clients::with_limits(max_kept(files, settings.limits.max_in_flight), MAX_AGE, settings, resolver)
    }

    /// Like [`Clients::new`], with the given limits.
    pub(crate) fn with_limits(
        max_kept: usize,
        max_age: Duration,
        settings: &Settings,
        resolver: Resolver,
    ) -> Result<Clients, DispatcherError> {
        let factory = Factory {
            tls: tls::config(&settings.certificates)?,
            resolver: Arc::new(resolver),
            connect_timeout: settings.connect_timeout,
            max_in_flight: settings.limits.max_in_flight,
            max_age,
        };
        let state = Mutex::new(State { current: factory.make()?, replaced: Vec::new() });
        let short_keep_alives =
            Cache::builder().max_capacity(MAX_SHORT_KEEP_ALIVES).time_to_idle(SHORT_KEEP_ALIVE_TTL).build();
        Ok(Clients { factory, max_kept, state, short_keep_alives })
    }

    /// Returns the client for one request to `origin`.
    pub(crate) fn get(&self, origin: &str) -> reqwest::Client {
        let is_short = self.has_short_keep_alive(origin);
        let mut state = self.state.lock();
        let is_old = state.current.made_at.elapsed() >= state.current.max_age;
        if is_old || state.opened() >= self.max_kept.saturating_sub(state.replaced_in_use()).max(MIN_KEPT) {
            self.replace(&mut state);
        }
        let State { current, .. } = &*state;
        if is_short { current.short_idle.clone() } else { current.normal.clone() }
    }

    /// Closes idle connections because the system has run out of sockets.
    pub(crate) fn close_idle(&self) {
        let mut state = self.state.lock();
        if state.current.made_at.elapsed() >= MIN_AGE {
            tracing::debug!("closing idle connections");
            self.replace(&mut state);
        }
    }

    /// Learns from a response's headers how long its receiver keeps idle connections.
    pub(crate) fn learn_keep_alive(&self, origin: &str, headers: &HeaderMap) {
        if keep_alive_timeout(headers).is_some_and(|seconds| seconds < MIN_KEEP_ALIVE) {
            self.learn_short_keep_alive(origin);
        }
    }

    /// Remembers that a receiver closes idle connections early.
    pub(crate) fn learn_short_keep_alive(&self, origin: &str) {
        self.short_keep_alives.insert(origin.to_owned(), ());
    }

    /// Whether a receiver is known to close idle connections early. Each call extends the entry's lifetime.
    pub(crate) fn has_short_keep_alive(&self, origin: &str) -> bool {
        self.short_keep_alives.get(origin).is_some()
    }

    fn replace(&self, state: &mut State) {
        match self.factory.make() {
            Ok(next) => {
                let replaced = std::mem::replace(&mut state.current, next);
                state.replaced.push(Arc::downgrade(&replaced.connections));
            }
            Err(error) => {
                tracing::error!(%error, "HTTP clients not replaced");
                state.current.made_at = Instant::now();
            }
        }
    }
}

impl State {
    fn opened(&self) -> usize {
        self.current.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of connections of replaced clients that still have requests in flight.
    fn replaced_in_use(&mut self) -> usize {
        // A count is held by the connectors of its client, and dropped with them.
        self.replaced.retain(|connections| connections.strong_count() > 0);
        let living = self.replaced.iter().filter_map(Weak::upgrade);
        living.map(|connections| connections.load(Ordering::Relaxed)).sum()
    }
}

/// Returns the timeout that a response announces in `Keep-Alive`, in seconds.
fn keep_alive_timeout(headers: &HeaderMap) -> Option<u64> {
    let parameters = headers.get("keep-alive")?.to_str().ok()?;
    parameters.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse().ok())?
    })
}

impl Factory {
    fn make(&self) -> Result<Generation, reqwest::Error> {
        let connections = Arc::new(AtomicUsize::new(0));
        Ok(Generation {
            normal: self.client(&connections, IDLE)?,
            short_idle: self.client(&connections, SHORT_IDLE)?,
            connections,
            made_at: Instant::now(),
            max_age: self.max_age.mul_f64(1.0 + MAX_AGE_JITTER * rand::random_range(-1.0..=1.0)),
        })
    }

    fn client(
        &self,
        connections: &Arc<AtomicUsize>,
        idle: Duration,
    ) -> Result<reqwest::Client, reqwest::Error> {
        let connections = connections.clone();
        reqwest::Client::builder()
            .http1_only()
            .user_agent(concat!("Redial/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(self.resolver.clone())
            .connect_timeout(self.connect_timeout)
            .connector_layer(layer_fn(move |connector| Observed {
                connector,
                connections: connections.clone(),
            }))
            .pool_max_idle_per_host(self.max_in_flight)
            .pool_idle_timeout(idle)
            // Tolerate faults that leave no doubt about the status.
            .http1_max_headers(MAX_HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            // Nothing may answer for the receiver, or send a request that is not on record.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .build()
    }
}

/// A connector that counts connections and reports them to the attempt's trace.
#[derive(Clone)]
struct Observed<C> {
    connector: C,
    connections: Arc<AtomicUsize>,
}

impl<C, R> Service<R> for Observed<C>
where
    C: Service<R, Response: Connection, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<C::Response, C::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, to: R) -> Self::Future {
        let (connecting, connections) = (self.connector.call(to), self.connections.clone());
        async move {
            if let Some(trace) = Trace::current() {
                trace.connector_began();
            }
            let connection = connecting.await?;
            connections.fetch_add(1, Ordering::Relaxed);
            if let Some(trace) = Trace::current() {
                let mut extras = Extensions::new();
                connection.connected().get_extras(&mut extras);
                trace.connected(extras.get::<HttpInfo>().map(HttpInfo::remote_addr));
            }
            Ok(connection)
        }
        .boxed()
    }
}

/// Returns `max_kept` for a limit of open files; `None` is unlimited. Half of the files that requests in
/// flight leave, since replaced clients may keep the same number for a while.
pub(crate) fn max_kept(files: Option<u64>, max_in_flight: usize) -> usize {
    let Some(files) = files else { return usize::MAX };
    let left = files.saturating_sub(OTHER_FILES + max_in_flight as u64) / 2;
    usize::try_from(left).unwrap_or(usize::MAX).max(MIN_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_connections_fit_the_limit_of_open_files() {
        assert_eq!(max_kept(None, 256), usize::MAX);
        assert_eq!(max_kept(Some(20_000), 256), 9_808);
        assert_eq!(max_kept(Some(512), 64), 160);
        assert_eq!(max_kept(Some(256), 256), MIN_KEPT);
    }

    #[test]
    fn the_keep_alive_timeout_is_found_among_other_parameters() {
        let timeout = |value: &str| {
            keep_alive_timeout(
                &[("keep-alive".parse().unwrap(), value.parse().unwrap())].into_iter().collect(),
            )
        };
        assert_eq!(timeout("timeout=5, max=100"), Some(5));
        assert_eq!(timeout("max=100, Timeout = 1"), Some(1));
        assert_eq!(timeout("max=100"), None);
        assert_eq!(timeout("timeout=soon"), None);
        assert_eq!(keep_alive_timeout(&HeaderMap::new()), None);
    }
}

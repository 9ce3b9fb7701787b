//! The HTTP client, and a limit on the connections it keeps.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::Instant;
use tower::util::MapRequestLayer;

use crate::resolver::Resolver;
use crate::{DispatcherError, Settings};

/// Provides the client to send with. reqwest limits idle connections per host only and can't close them on demand, so
/// the client is replaced instead. A replaced client's idle connections close when its last request ends.
pub(crate) struct Client {
    factory: Factory,
    /// Connections that one client may open in its life, an upper bound of those it keeps.
    max_kept: usize,
    current: Mutex<Generation>,
}

struct Factory {
    /// Loaded once, so that making a client needs no file descriptor.
    tls: rustls::ClientConfig,
    resolver: Arc<Resolver>,
    connect_timeout: Duration,
    max_in_flight: usize,
}

struct Generation {
    client: reqwest::Client,
    /// Connections begun.
    connections: Arc<AtomicUsize>,
    made_at: Instant,
}

/// File descriptors for anything but connections to receivers: database, broker, listeners, DNS.
const OTHER_FILES: u64 = 128;
/// `max_kept` where there are hardly any file descriptors.
const MIN_KEPT: usize = 16;
/// A client replaced for lack of sockets is at least this old.
const MIN_AGE: Duration = Duration::from_secs(1);

impl Client {
    pub(crate) fn new(settings: &Settings, resolver: Resolver) -> Result<Client, DispatcherError> {
        let files = getrlimit(Resource::Nofile).current;
        Client::keeping(max_kept(files, settings.limits.max_in_flight), settings, resolver)
    }

    /// As [`Client::new`], with a limit of the caller's.
    pub(crate) fn keeping(
        max_kept: usize,
        settings: &Settings,
        resolver: Resolver,
    ) -> Result<Client, DispatcherError> {
        // Fails only if another part of the process has chosen a provider, which is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut tls = rustls::ClientConfig::builder().with_platform_verifier()?.with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let factory = Factory {
            tls,
            resolver: Arc::new(resolver),
            connect_timeout: settings.connect_timeout,
            max_in_flight: settings.limits.max_in_flight,
        };
        let current = Mutex::new(factory.make()?);
        Ok(Client { factory, max_kept, current })
    }

    /// The client to send one request with.
    pub(crate) fn get(&self) -> reqwest::Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.connections.load(Ordering::Relaxed) >= self.max_kept {
            self.replace(&mut current);
        }
        current.client.clone()
    }

    /// Closes idle connections, because the system has no more sockets.
    pub(crate) fn close_idle(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.made_at.elapsed() >= MIN_AGE {
            tracing::debug!("closing idle connections");
            self.replace(&mut current);
        }
    }

    fn replace(&self, current: &mut Generation) {
        match self.factory.make() {
            Ok(next) => *current = next,
            Err(error) => tracing::error!(%error, "the HTTP client was not replaced"),
        }
    }
}

impl Factory {
    fn make(&self) -> Result<Generation, reqwest::Error> {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let client = reqwest::Client::builder()
            .http1_only()
            .user_agent(concat!("Redial/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.tls.clone())
            .dns_resolver(self.resolver.clone())
            .connect_timeout(self.connect_timeout)
            .connector_layer(MapRequestLayer::new(move |to| {
                counted.fetch_add(1, Ordering::Relaxed);
                to
            }))
            .pool_max_idle_per_host(self.max_in_flight)
            .pool_idle_timeout(Duration::from_secs(30))
            // Nothing may answer for the receiver, or send a request that is not on record.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .build()?;
        Ok(Generation { client, connections, made_at: Instant::now() })
    }
}

/// Returns `max_kept` for a limit of open files; `None` is unlimited. Half of what requests in flight leave, since a
/// replaced client may keep as many for a while.
pub(crate) fn max_kept(files: Option<u64>, max_in_flight: usize) -> usize {
    let Some(files) = files else { return usize::MAX };
    let left = files.saturating_sub(OTHER_FILES + max_in_flight as u64) / 2;
    usize::try_from(left).unwrap_or(usize::MAX).max(MIN_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_no_more_connections_than_there_are_files() {
        assert_eq!(max_kept(None, 256), usize::MAX);
        assert_eq!(max_kept(Some(20_000), 256), 9_808);
        assert_eq!(max_kept(Some(512), 64), 160);
        assert_eq!(max_kept(Some(256), 256), MIN_KEPT);
    }
}

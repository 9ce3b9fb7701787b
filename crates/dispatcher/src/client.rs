//! The HTTP client, and how many connections it may keep.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::Instant;
use tower::util::MapRequestLayer;

use crate::resolver::Resolver;
use crate::{DispatcherError, Settings};

/// The client in use. It is replaced by a new one when too many connections may be idle in its pool, which can't be
/// emptied by itself. The old one's idle connections are closed when its last request ends.
pub(crate) struct Client {
    parts: Parts,
    /// The most connections that one client makes in its life, and so can keep.
    most_kept: usize,
    current: Mutex<Generation>,
}

/// What every generation is made of.
struct Parts {
    /// Shared, so that making a client reads no file: it must succeed when no file can be opened.
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

/// Open files that are no connections to receivers: the database's, the broker's, listeners, name servers' sockets.
const OTHER_FILES: u64 = 128;
/// What a client may keep however few files there are.
const LEAST_KEPT: usize = 16;
/// How often clients are replaced at most for want of sockets.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

impl Client {
    pub(crate) fn new(settings: &Settings, resolver: Resolver) -> Result<Client, DispatcherError> {
        let files = getrlimit(Resource::Nofile).current;
        Client::keeping(most_kept(files, settings.limits.max_in_flight), settings, resolver)
    }

    /// As [`Client::new`], keeping at most that many connections.
    pub(crate) fn keeping(
        most_kept: usize,
        settings: &Settings,
        resolver: Resolver,
    ) -> Result<Client, DispatcherError> {
        // Fails only when some other part of the process has chosen a provider before, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut tls = rustls::ClientConfig::builder().with_platform_verifier()?.with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let parts = Parts {
            tls,
            resolver: Arc::new(resolver),
            connect_timeout: settings.connect_timeout,
            max_in_flight: settings.limits.max_in_flight,
        };
        let current = Mutex::new(parts.generation()?);
        Ok(Client { parts, most_kept, current })
    }

    /// The client to send one request with.
    pub(crate) fn get(&self) -> reqwest::Client {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.connections.load(Ordering::Relaxed) >= self.most_kept {
            self.replace(&mut current);
        }
        current.client.clone()
    }

    /// Gives idle connections back, because the system has no more sockets.
    pub(crate) fn give_back(&self) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.made_at.elapsed() >= RENEWED_EVERY {
            tracing::info!("closing idle connections");
            self.replace(&mut current);
        }
    }

    fn replace(&self, current: &mut Generation) {
        match self.parts.generation() {
            Ok(next) => *current = next,
            Err(error) => tracing::error!(%error, "the HTTP client was not replaced"),
        }
    }
}

impl Parts {
    fn generation(&self) -> Result<Generation, reqwest::Error> {
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

/// How many connections a client may keep where `files` may be open, `None` being unlimited: half of what is left
/// beside requests in flight, since an old client keeps its own until its last request ends.
fn most_kept(files: Option<u64>, max_in_flight: usize) -> usize {
    let Some(files) = files else { return usize::MAX };
    let left = files.saturating_sub(OTHER_FILES + max_in_flight as u64) / 2;
    usize::try_from(left).unwrap_or(usize::MAX).max(LEAST_KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_no_more_connections_than_there_are_files() {
        assert_eq!(most_kept(None, 256), usize::MAX);
        assert_eq!(most_kept(Some(20_000), 256), 9_808);
        assert_eq!(most_kept(Some(512), 64), 160);
        assert_eq!(most_kept(Some(256), 256), LEAST_KEPT);
    }
}

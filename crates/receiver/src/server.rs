//! The HTTP server that runs the scripts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use actix_web::dev::ServerHandle;
use actix_web::http::{Method, header};
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use contracts::{SigningSecret, Timestamp};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use crate::script::Script;
use crate::verdict::verify;
use crate::{HELP, Received, Verdict};

/// Far above Redial's limit, so that no payload is refused here.
const MAX_BODY_BYTES: usize = 64 << 20;
/// Longer than clients' pools keep idle connections, or a request could arrive on a connection that is being
/// closed.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// Maximum webhook-ids counted for `/fail-first` and `/retry-after`; bounds memory over weeks of use.
const MAX_COUNTED_IDS: usize = 1 << 18;

/// Configuration of a [`Receiver`]. By default it has no secrets and no sink, and uses the system's clock.
#[derive(Clone)]
pub struct Options {
    /// Secrets to verify with; any may match.
    pub secrets: Vec<SigningSecret>,
    /// Receives each POST before it is answered. `None` copies nothing, for load tests.
    pub sink: Option<UnboundedSender<Received>>,
    /// Returns the time that `webhook-timestamp` is compared with.
    pub now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self { secrets: Vec::new(), sink: None, now: Arc::new(system_now) }
    }
}

#[expect(clippy::disallowed_methods, reason = "a receiver is another party, with a clock of its own")]
fn system_now() -> Timestamp {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(0) + since_1970
}

/// A running receiver. Dropping it stops it.
pub struct Receiver {
    addr: SocketAddr,
    state: Data<State>,
    handle: ServerHandle,
    running: JoinHandle<io::Result<()>>,
}

struct State {
    secrets: RwLock<Vec<SigningSecret>>,
    sink: Option<UnboundedSender<Received>>,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    requests_by_id: Mutex<HashMap<String, u32>>,
    /// Requests to `/at-once` in progress, not counting those answered 429.
    served_at_once: Arc<AtomicUsize>,
    posts: AtomicU64,
    invalid: AtomicU64,
}

impl Receiver {
    /// Listens on `addr` (port 0: any free port) and serves until stopped or dropped. Must be called within a
    /// Tokio runtime; requests are handled on a thread of their own.
    pub fn bind(addr: SocketAddr, options: Options) -> io::Result<Self> {
        let state = Data::new(State {
            secrets: RwLock::new(options.secrets),
            sink: options.sink,
            now: options.now,
            requests_by_id: Mutex::default(),
            served_at_once: Arc::default(),
            posts: AtomicU64::default(),
            invalid: AtomicU64::default(),
        });
        let shared = state.clone();
        let app = move || {
            App::new()
                .app_data(shared.clone())
                .app_data(web::PayloadConfig::new(MAX_BODY_BYTES))
                .default_service(web::to(respond))
        };
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .keep_alive(KEEP_ALIVE)
            .h1_allow_half_closed(false) // so that /hang ends when its client disconnects
            .bind(addr)?;
        let addr = server.addrs()[0];
        let server = server.run();
        Ok(Self { addr, state, handle: server.handle(), running: tokio::spawn(server) })
    }

    /// Returns the listen address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the URL of a path, such as `/ok`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Adds a secret to verify with, from the next request on.
    pub fn add_secret(&self, secret: SigningSecret) {
        self.state.secrets.write().push(secret);
    }

    /// Returns the number of POSTs received.
    pub fn posts(&self) -> u64 {
        self.state.posts.load(Ordering::Relaxed)
    }

    /// Returns the number of POSTs with [`Verdict::Invalid`].
    pub fn invalid(&self) -> u64 {
        self.state.invalid.load(Ordering::Relaxed)
    }

    /// Stops immediately, aborting requests in progress, and frees the port.
    pub async fn stop(self) {
        self.handle.stop(false).await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.running.abort(); // dropping the server stops it
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("addr", &self.addr).finish_non_exhaustive()
    }
}

async fn respond(request: HttpRequest, body: Bytes, state: Data<State>) -> HttpResponse {
    if request.method() != Method::POST {
        let help = request.method() == Method::GET && request.path() == "/";
        let mut response = if help { HttpResponse::Ok() } else { HttpResponse::MethodNotAllowed() };
        return response.insert_header((header::ALLOW, "POST")).content_type("text/plain").body(HELP);
    }
    let (script, _served) = match Script::parse(request.path()).drawn() {
        Script::AtOnce(limit) => match Served::within(limit, &state.served_at_once) {
            Some(served) => (Script::AtOnce(limit), Some(served)),
            None => (Script::TooMany, None),
        },
        script => (script, None),
    };
    let status = script.status(|| state.count(&request));
    state.record(&request, &body, status.map(|status| status.as_u16()), script.delay());
    script.answer(status).await
}

/// Counts a request to `/at-once` in progress until dropped.
struct Served(Arc<AtomicUsize>);

impl Served {
    /// Counts a request, or returns `None` if `limit` are in progress.
    fn within(limit: usize, count: &Arc<AtomicUsize>) -> Option<Served> {
        let one_more = |served| (served < limit).then_some(served + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Served(count.clone()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    /// Counts this request and returns the number of earlier ones with the same webhook-id.
    fn count(&self, request: &HttpRequest) -> u32 {
        let id = request.headers().get("webhook-id").map(|id| String::from_utf8_lossy(id.as_bytes()));
        let mut requests = self.requests_by_id.lock();
        if requests.len() >= MAX_COUNTED_IDS {
            requests.clear();
        }
        let count = requests.entry(id.unwrap_or_default().into_owned()).or_default();
        *count += 1;
        *count - 1
    }

    fn record(&self, request: &HttpRequest, body: &Bytes, answered: Option<u16>, delay: Duration) {
        let received_at = Instant::now();
        let verdict = {
            let secrets = self.secrets.read();
            verify(&secrets, request.headers(), body, (self.now)())
        };
        self.posts.fetch_add(1, Ordering::Relaxed);
        if matches!(verdict, Verdict::Invalid(_)) {
            self.invalid.fetch_add(1, Ordering::Relaxed);
        }
        let Some(sink) = &self.sink else { return };
        let headers = request.headers().iter();
        let mut headers: Vec<_> = headers
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        headers.sort(); // actix keeps them in a hash map, so their order of arrival is lost
        let path = request.uri().to_string();
        // Keep responding when the sink is closed.
        _ = sink.send(Received { received_at, path, headers, body: body.to_vec(), verdict, answered, delay });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_requests_are_in_progress_than_the_limit() {
        let count = Arc::default();
        let served: Vec<_> = (0..3).filter_map(|_| Served::within(2, &count)).collect();
        assert_eq!(served.len(), 2);
        drop(served);
        assert!(Served::within(1, &count).is_some());
    }
}

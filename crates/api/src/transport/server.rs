//! Serves an application over guarded connections.
//!
//! Assembled like `actix_web::HttpServer`, which only accepts plain TCP connections.

use std::fmt::Debug;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_http::{Extensions, HttpService, Protocol, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::AppConfig;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;
use crate::transport::client::is_trusted;
use crate::transport::client_slots::ClientSlots;
use crate::transport::connection::Guarded;

/// Time that requests in flight get after a shutdown. Less than the 10 s that Docker leaves between SIGTERM
/// and SIGKILL.
const GRACE_SECONDS: u64 = 5;
/// How long an unwanted body is still read, so that the client can read the response.
const LINGER: Duration = Duration::from_secs(1);
/// Length of the kernel's accept queue, so that a burst of connections does not push others out. The standard
/// library requests 128.
const BACKLOG: i32 = 4096;

/// Admits connections.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) limits: Limits,
    /// Connections per client.
    pub(crate) slots: Arc<ClientSlots>,
    /// Proxies whose connections are not counted, since they serve many clients.
    pub(crate) trusted_proxies: Vec<IpNet>,
}

impl Admission {
    /// Accepts a connection. One over its client's limit gets an error response and is closed.
    fn take(&self, io: TcpStream, peer: Option<SocketAddr>) -> Guarded {
        let guarded = Guarded::new(io, self.limits);
        match peer.map(|peer| peer.ip()) {
            Some(peer) if !is_trusted(peer, &self.trusted_proxies) => guarded.counted(self.slots.take(peer)),
            _ => guarded,
        }
    }
}

/// Serves on `listener` until `shutdown`, see [`crate::run`].
pub(crate) async fn serve<F, A, S, B>(
    listener: TcpListener,
    workers: usize,
    admission: Admission,
    shutdown: CancellationToken,
    app: F,
) -> io::Result<()>
where
    F: Fn() -> A + Clone + Send + 'static,
    A: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    <S::Service as Service<Request>>::Future: 'static,
    B: MessageBody + 'static,
{
    rustix::net::listen(&listener, BACKLOG)?;
    let limits = admission.limits;
    let server = Server::build()
        .workers(workers)
        .max_concurrent_connections(limits.connections)
        .shutdown_timeout(GRACE_SECONDS)
        .shutdown_signal(shutdown.cancelled_owned());
    let stopping = server.graceful_shutdown_signal();
    let service = move || {
        let (stopping, admission) = (stopping.clone(), admission.clone());
        let app = app().into_factory().map_err(|error| Response::from(error.into().error_response()));
        let http = HttpService::build()
            .client_request_timeout(limits.head_time)
            .client_disconnect_timeout(LINGER)
            .keep_alive(limits.idle_time)
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .on_connect_ext(|io: &Guarded, data: &mut Extensions| {
                data.insert(io.progress());
            })
            .finish(map_config(app, |()| AppConfig::default()));
        fn_service(move |io: TcpStream| {
            let peer = io.peer_addr().ok();
            ready(Ok((admission.take(io, peer), Protocol::Http1, peer)))
        })
        .and_then(http)
    };
    server.listen("api", listener, service)?.run().await
}

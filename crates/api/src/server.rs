//! Serving an application over connections that are guarded.
//!
//! Put together as `actix_web::HttpServer` does it, which takes plain TCP connections only.

use std::fmt::Debug;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use actix_http::{Extensions, HttpService, Protocol, Request, Response};
use actix_server::Server;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::AppConfig;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::Limits;
use crate::connection::Guarded;

/// After a stop, how long requests in flight may still take: within the 10 s that Docker leaves between SIGTERM
/// and SIGKILL.
const GRACE_SECONDS: u64 = 5;
/// How long a body that is not wanted is still read, so that the client gets to read the answer to it.
const LINGER: Duration = Duration::from_secs(1);
/// Connections that wait to be taken: a wave of them must not push others out. The standard library asks for 128.
const BACKLOG: i32 = 4096;

/// Serves on `listener` until `shutdown`, see [`crate::run`].
pub(crate) async fn serve<F, A, S, B>(
    listener: TcpListener,
    workers: usize,
    limits: Limits,
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
    let server = Server::build()
        .workers(workers)
        .max_concurrent_connections(limits.connections)
        .shutdown_timeout(GRACE_SECONDS)
        .shutdown_signal(shutdown.cancelled_owned());
    let stopping = server.graceful_shutdown_signal();
    let service = move || {
        let stopping = stopping.clone();
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
        fn_service(move |io: TcpStream| async move {
            let peer = io.peer_addr().ok();
            Ok((Guarded::new(io, limits), Protocol::Http1, peer))
        })
        .and_then(http)
    };
    server.listen("api", listener, service)?.run().await
}

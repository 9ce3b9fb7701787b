//! The HTTP API (contract section 3), on actix-web.
//!
//! `transport` bounds connections and messages. `routes` holds the table of calls and the scope each one
//! needs. The checks of a call have a fixed order: token, the organization's rate limit, organization header,
//! scope (all in `guards::auth`), then path, query and body, then the run. A handler fits on one screen: it
//! extracts its input, runs one transaction, rings the doorbell and responds. Every response other than a 2xx
//! is an `error::ApiError`, or an `early_error::EarlyError` if there is no request.

mod acceptor;
mod call;
mod context;
mod description;
mod doorbell;
mod error;
mod guards;
mod limits;
mod query;
mod routes;
mod transport;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use actix_web::App;
use actix_web::middleware::from_fn;
use actix_web::web::{Data, ServiceConfig};
use ops::{Metrics, Readiness};
use tokio_util::sync::CancellationToken;

use crate::acceptor::Acceptor;
use crate::context::MemoryBudgets;
use crate::description::openapi::Description;
use crate::guards::auth::Authenticator;
use crate::guards::memory::MemoryBudget;
use crate::transport::client_slots::ClientSlots;
use crate::transport::server::{Admission, serve};
use crate::transport::{access_log, client_slots, connection, request_id, unread_body};

pub use context::Api;
pub use guards::rate_limit::Rate;
pub use limits::Limits;
pub use routes::runs::parse_run;

/// Serves the API on `listener` with `workers` threads until `shutdown`. Then it accepts no more connections,
/// closes idle ones, and returns when all requests in flight are answered. Requests still in flight after
/// five seconds are cut off.
pub async fn run(
    listener: TcpListener,
    api: Api,
    workers: usize,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let acceptor = Data::new(Acceptor::start(&api));
    tokio::spawn(guards::idempotency::forget_old_keys(api.store.clone(), shutdown.clone()));
    let (limits, authenticator) = (api.limits, Data::new(Authenticator::new(&api.limits)));
    let budgets = Data::new(MemoryBudgets {
        arriving: MemoryBudget::new(limits.arriving),
        working: MemoryBudget::new(limits.working),
    });
    let readiness = Data::new(api.readiness.clone());
    let slots = Arc::new(ClientSlots::new(limits.connections_of_client));
    let admission = Admission { limits, slots: slots.clone(), trusted_proxies: api.trusted_proxies.clone() };
    let (api, slots) = (Data::new(api), Data::from(slots));
    let description = Data::new(Description::of(&routes::table()));
    let app = move || {
        App::new()
            .app_data(api.clone())
            .app_data(acceptor.clone())
            .app_data(authenticator.clone())
            .app_data(budgets.clone())
            .app_data(slots.clone())
            .app_data(description.clone())
            .app_data(readiness.clone())
            .configure(routes::configure)
            .wrap(from_fn(client_slots::layer))
            .wrap(from_fn(access_log::layer))
            .wrap(from_fn(request_id::layer))
            .wrap(from_fn(unread_body::layer))
            .wrap(from_fn(connection::layer)) // the last layer is the outermost
    };
    serve(listener, workers, admission, shutdown, app).await
}

/// Serves `GET /metrics` on `listener` until `shutdown`, for operators only.
pub async fn run_metrics(
    listener: TcpListener,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let metrics = Data::new(metrics);
    serve_beside(listener, shutdown, move |app| {
        app.app_data(metrics.clone());
        routes::configure_metrics(app);
    })
    .await
}

/// Serves only `GET /v1/health` and `GET /health/ready` on `listener` until `shutdown`, for a dispatcher,
/// which has no other HTTP.
pub async fn run_health(
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let readiness = Data::new(readiness);
    serve_beside(listener, shutdown, move |app| {
        app.app_data(readiness.clone());
        routes::configure_health(app);
    })
    .await
}

/// Serves a few operators' requests.
async fn serve_beside(
    listener: TcpListener,
    shutdown: CancellationToken,
    configure: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> io::Result<()> {
    let app = move || {
        App::new()
            .configure(configure.clone())
            .wrap(from_fn(request_id::layer))
            .wrap(from_fn(unread_body::layer))
            .wrap(from_fn(connection::layer))
    };
    // They are rare and must not use up the file descriptors that deliveries need.
    let limits = Limits { connections: 256, ..Limits::default() };
    let admission =
        Admission { limits, slots: Arc::new(ClientSlots::new(None)), trusted_proxies: Vec::new() };
    serve(listener, 1, admission, shutdown, app).await
}

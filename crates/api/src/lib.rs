//! The HTTP API (contract section 3), on actix-web.
//!
//! `server` and `connection` guard connections. `routes` holds the table of calls and the scope each one
//! needs. The checks of a call have a fixed order: token, the organization's rate limit, organization header,
//! scope (all in `auth`), then path, query and body, then the run. A handler fits on one screen: it extracts
//! its input, runs one transaction, rings the doorbell and responds. Every response other than a 2xx is an
//! `error::ApiError`, or an `unparsed::Refusal` if there is no request.

mod acceptor;
mod access_log;
mod auth;
mod body;
mod call;
mod client;
mod connection;
mod doorbell;
mod error;
mod idempotency;
mod keeping;
mod limits;
mod openapi;
mod operation;
mod paging;
mod params;
mod rate_limit;
mod readiness;
mod request_id;
mod room;
mod routes;
mod selection;
mod server;
mod shares;
mod unparsed;
mod unread;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use actix_web::App;
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use egress::Policy;
use ipnet::IpNet;
use queue::Publisher;
use store::{AcceptPolicy, Keyring, Store};
use tokio_util::sync::CancellationToken;

use crate::acceptor::Acceptor;
use crate::auth::Gate;
use crate::openapi::Description;
use crate::room::Room;
use crate::server::{Door, serve};
use crate::shares::Shares;

pub use limits::Limits;
pub use rate_limit::Rate;
pub use readiness::{Readiness, silent};
pub use routes::runs::parse_run;

/// Dependencies and settings of the API.
#[derive(Clone)]
pub struct Api {
    /// The database.
    pub store: Store,
    /// Rings doorbells for accepted deliveries.
    pub publisher: Publisher,
    /// Decides which callback URLs are allowed.
    pub egress: Policy,
    /// Seals new signing secrets.
    pub keyring: Keyring,
    /// Settings fixed on a delivery when it is accepted.
    pub accept: AcceptPolicy,
    /// Maximum size of a request body, in bytes.
    pub max_body: usize,
    /// Limits that protect shared resources from a single caller.
    pub limits: Limits,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Checks behind `GET /health/ready`.
    pub readiness: Readiness,
}

/// Memory budgets shared by large requests.
pub(crate) struct Large {
    /// For bodies being read.
    pub(crate) arriving: Room,
    /// For processing bodies, and for responses.
    pub(crate) working: Room,
}

/// Serves the API on `listener` with `workers` threads until `shutdown`. Then it accepts no more connections,
/// closes idle ones, and returns when all requests in flight are answered. Requests still in flight after
/// five seconds are cut off.
pub async fn run(
    listener: TcpListener,
    api: Api,
    workers: usize,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let acceptor =
        Acceptor::start(api.store.clone(), api.publisher.clone(), api.accept, api.limits.database_time);
    let acceptor = Data::new(acceptor);
    tokio::spawn(idempotency::forget_old_keys(api.store.clone(), shutdown.clone()));
    let (limits, gate) = (api.limits, Data::new(Gate::new(&api.limits)));
    let large = Data::new(Large { arriving: Room::new(limits.arriving), working: Room::new(limits.working) });
    let readiness = Data::new(api.readiness.clone());
    let shares = Arc::new(Shares::new(limits.connections_of_client));
    let door = Door { limits, shares: shares.clone(), trusted_proxies: api.trusted_proxies.clone() };
    let (api, shares) = (Data::new(api), Data::from(shares));
    let description = Data::new(Description::of(&routes::table()));
    let app = move || {
        App::new()
            .app_data(api.clone())
            .app_data(acceptor.clone())
            .app_data(gate.clone())
            .app_data(large.clone())
            .app_data(shares.clone())
            .app_data(description.clone())
            .app_data(readiness.clone())
            .configure(routes::configure)
            .wrap(from_fn(shares::layer))
            .wrap(from_fn(access_log::layer))
            .wrap(from_fn(request_id::layer))
            .wrap(from_fn(unread::layer))
            .wrap(from_fn(connection::layer)) // the last layer is the outermost
    };
    serve(listener, workers, door, shutdown, app).await
}

/// Serves only `GET /v1/health` and `GET /health/ready` on `listener` until `shutdown`, for a dispatcher,
/// which has no other HTTP.
pub async fn run_health(
    listener: TcpListener,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let readiness = Data::new(readiness);
    let app = move || {
        App::new()
            .app_data(readiness.clone())
            .configure(routes::configure_health)
            .wrap(from_fn(request_id::layer))
            .wrap(from_fn(unread::layer))
            .wrap(from_fn(connection::layer))
    };
    // Health is polled rarely and must not use up the file descriptors that deliveries need.
    let limits = Limits { connections: 256, ..Limits::default() };
    let door = Door { limits, shares: Arc::new(Shares::new(None)), trusted_proxies: Vec::new() };
    serve(listener, 1, door, shutdown, app).await
}

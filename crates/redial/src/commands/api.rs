//! `redial api`: the HTTP API as a service.

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::Context;
use store::{DatabaseUrl, Store, StoreError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;
use crate::signals;

/// Each accepted delivery is a transaction of its own that waits for the disk; this many wait together.
const CONNECTIONS: u32 = 16;
/// How long a service waits for a database that is away when it starts.
const START_PATIENCE: Duration = Duration::from_secs(30);
const START_PAUSE: Duration = Duration::from_millis(500);

pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let stopped = signals::stop();
    let (url, broker, keyring) = (settings.postgres_url()?, settings.broker()?, settings.keyring()?);
    let listener = TcpListener::bind(settings.api.listen)
        .with_context(|| format!("api.listen: cannot listen on {}", settings.api.listen))?;
    let store = open_patiently(&url, CONNECTIONS).await?;
    let shutdown = CancellationToken::new();
    let publisher_shutdown = CancellationToken::new();
    let publisher = broker.publisher(publisher_shutdown.clone());
    let api = api::Api {
        store: store.clone(),
        publisher: publisher.clone(),
        egress: settings.egress_policy(),
        keyring,
        accept: settings.accept_policy(),
        max_body: settings.api.max_body,
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let clock = { let (store, shutdown) = (store, shutdown.clone()); async move { store.keep_clock_aligned(shutdown).await } };
    tokio::spawn(clock);
    tracing::info!(listen = %listener.local_addr()?, "serving the API");
    let serve = tokio::spawn(api::run(listener, api, workers, shutdown.clone()));
    let stop = { let shutdown = shutdown.clone(); async move { let signal = stopped.await; tracing::info!(signal, "stopping"); shutdown.cancel(); } };
    tokio::spawn(stop);
    serve.await??;
    // What the last requests rang is still published.
    publisher_shutdown.cancel();
    publisher.closed().await;
    Ok(())
}

/// Opens the database of a service, waiting for one that is away.
pub(crate) async fn open_patiently(url: &DatabaseUrl, connections: u32) -> anyhow::Result<Store> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match Store::open(url, connections).await {
            Err(error @ StoreError::Unavailable(_)) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(START_PAUSE).await;
            }
            other => return other.with_context(|| format!("cannot use {url}")),
        }
    }
}

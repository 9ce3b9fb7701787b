//! `redial api`: the HTTP API as a service.

use std::net::TcpListener;
use std::num::NonZeroUsize;

use anyhow::Context;
use ops::Readiness;
use tokio_util::sync::CancellationToken;

use crate::commands::service;
use crate::keys;
use crate::metrics;
use crate::open_files;
use crate::settings::Settings;
use crate::traces::Traces;

/// Each accepted delivery is a transaction that waits for the disk; this many can wait at once.
pub(crate) const CONNECTIONS: u32 = 16;

pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let (url, broker, keyring) = (settings.postgres_url()?, settings.broker()?, settings.keyring()?);
    let listener = TcpListener::bind(settings.api.listen)
        .with_context(|| format!("api.listen: cannot listen on {}", settings.api.listen))?;
    let metrics_listener = settings.metrics.listen.as_ref().map(metrics::listen).transpose()?;
    let traces = Traces::start("redial-api", settings)?;
    let service = service::start(&url, settings.database.pool_size.unwrap_or(CONNECTIONS)).await?;
    let (store, shutdown) = (service.store.clone(), service.shutdown.clone());
    keys::check(&store, &keyring).await?;
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (open_files, limits) = (open_files::raise_limit(), settings.limits());
    let connections = open_files::connections_per_worker(open_files, workers, limits.connections);
    // Not ready from the signal on, but serving until load balancers have noticed.
    let stopping = shutdown.clone();
    let shutdown = service::delayed(shutdown, settings.api.drain_delay);
    let publisher_shutdown = CancellationToken::new();
    let publisher = broker.publisher(publisher_shutdown.clone());
    let metrics = metrics::of_process(&store);
    metrics::watch(&metrics, Some(&publisher), None);
    let readiness =
        Readiness::of_database(&store, shutdown.clone()).and("serving", service::serving(&stopping));
    metrics.readiness(readiness.clone());
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    metrics::serve(metrics_listener, metrics.clone(), ended)?;
    let api = api::Api {
        readiness,
        metrics,
        tracer: traces.tracer.clone(),
        store,
        publisher: publisher.clone(),
        egress: settings.egress_policy(),
        keyring,
        accept: settings.accept_policy(),
        max_body: settings.api.max_body,
        trusted_proxies: settings.api.trusted_proxies.clone(),
        limits: api::Limits { connections, ..limits },
    };
    tracing::info!(
        listen = %listener.local_addr()?,
        workers,
        connections_per_worker = connections,
        open_files,
        "serving the API"
    );
    // Spawned, because the runtime does not move what runs on the main thread to an idle worker.
    tokio::spawn(api::run(listener, api, workers, shutdown)).await??;
    // Publish the doorbells of the last requests.
    publisher_shutdown.cancel();
    publisher.closed().await;
    traces.stop().await;
    service.ended()
}

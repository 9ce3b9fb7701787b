//! `redial dispatcher`: delivery as a service.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use dispatcher::{Dispatcher, Progress};
use ops::{Readiness, silent};
use queue::Consumer;
use tokio_util::sync::CancellationToken;

use crate::commands::service;
use crate::keys;
use crate::metrics;
use crate::open_files;
use crate::settings::Settings;
use crate::traces::Traces;

/// One connection each to claim, record, retry refused records and recover leases; two to read secrets.
pub(crate) const CONNECTIONS: u32 = 6;

/// Runs until SIGTERM or SIGINT. Missing keys are read again from `config_file`, the file of `settings`.
pub(crate) async fn run(settings: &Settings, config_file: Option<PathBuf>) -> anyhow::Result<()> {
    let (url, broker, keyring) = (settings.postgres_url()?, settings.broker()?, settings.keyring()?);
    let health = settings.dispatcher.listen.map(|addr| {
        TcpListener::bind(addr).with_context(|| format!("dispatcher.listen: cannot listen on {addr}"))
    });
    let health = health.transpose()?;
    let metrics_listener = settings.metrics.listen.as_ref().map(metrics::listen).transpose()?;
    let traces = Traces::start("redial-dispatcher", settings)?;
    open_files::raise_limit_for(settings.dispatcher.max_in_flight.into());
    let service = service::start(&url, settings.database.pool_size.unwrap_or(CONNECTIONS)).await?;
    let (store, shutdown) = (service.store.clone(), service.shutdown.clone());
    keys::check(&store, &keyring).await?;
    // Unacknowledged are the messages of the batch being claimed and of the one being collected.
    let consumer = broker.consumer(prefetch(settings.dispatcher.max_in_flight), shutdown.clone());
    let (metrics, progress) = (metrics::of_process(&store), Progress::default());
    metrics::watch(&metrics, None, Some((&consumer, &progress)));
    let dispatcher = Dispatcher {
        store,
        keyring,
        key_source: keys::source(config_file),
        egress: settings.egress_policy(),
        settings: settings.dispatcher_settings(),
        progress,
        metrics: metrics.clone(),
        tracer: traces.tracer.clone(),
    };
    // Health checks and metrics are served until the end, also while attempts in flight finish.
    let ended = CancellationToken::new();
    let _ended = ended.clone().drop_guard();
    let readiness = Readiness::of_database(&dispatcher.store, ended.clone())
        .and("serving", service::serving(&shutdown))
        .and("broker", consuming(&consumer))
        .and("claiming", claiming(&dispatcher))
        .and("recording", recording(&dispatcher))
        .and("sending", sending(&dispatcher));
    metrics.readiness(readiness.clone());
    metrics::serve(metrics_listener, metrics, ended.clone())?;
    if let Some(listener) = health {
        tracing::info!(listen = %listener.local_addr()?, "answering health checks");
        tokio::spawn(async move {
            if let Err(error) = api::run_health(listener, readiness, ended).await {
                tracing::error!(%error, "health checks are no longer served");
            }
        });
    }
    dispatcher.run(consumer, shutdown).await?;
    traces.stop().await;
    service.ended()
}

/// Two missed liveness checks of the consuming channel.
const BROKER_PATIENCE: Duration = Duration::from_secs(12);
/// Timeout without progress. For claims it is added to the longest attempt: while slow receivers take every
/// slot, nothing is claimed for that long.
const WORK_PATIENCE: Duration = Duration::from_secs(10);

/// Readiness: doorbells are received. Without them the relay still delivers everything, but later.
fn consuming(consumer: &Consumer) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let (stats, began) = (consumer.watch(), Instant::now());
    move || {
        let alive_at = stats.borrow().alive_at.unwrap_or(began);
        silent("RabbitMQ has not been consumed from", alive_at, BROKER_PATIENCE)
    }
}

/// Readiness: attempts are claimed, or none is due.
fn claiming(dispatcher: &Dispatcher) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let timeout = dispatcher.settings.limits.timeout;
    let (progress, patience) = (dispatcher.progress.clone(), timeout + WORK_PATIENCE);
    move || silent("no attempt has been claimed", progress.claimed_at(), patience)
}

/// Readiness: results can be recorded.
fn recording(dispatcher: &Dispatcher) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let progress = dispatcher.progress.clone();
    move || silent("results could not be recorded", progress.unrecorded_since()?, WORK_PATIENCE)
}

/// Readiness: attempts don't fail for a reason local to this process.
fn sending(dispatcher: &Dispatcher) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let progress = dispatcher.progress.clone();
    move || {
        let trouble = progress.troubles().into_iter().find(|trouble| trouble.concerns_all());
        trouble.map(|trouble| format!("attempts can't be sent: {}", trouble.detail()))
    }
}

/// Returns how many messages a dispatcher with `max_in_flight` slots prefetches. Under load a message has up
/// to [`contracts::Job::MOST`] jobs, and no other dispatcher can take a prefetched message. When idle, a
/// message has one job and is acknowledged within milliseconds.
fn prefetch(max_in_flight: u16) -> u16 {
    (max_in_flight / 16).max(4)
}

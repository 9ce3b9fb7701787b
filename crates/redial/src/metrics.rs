//! The metrics of a service: what is read at each scrape, and the listener.

use std::net::TcpListener;

use anyhow::{Context, Result};
use dispatcher::Progress;
use ops::Metrics;
use queue::{Consumer, Publisher};
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::settings::ListenAddress;

/// Returns the metrics of a process that uses `store`.
pub(crate) fn of_process(store: &Store) -> Metrics {
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let (clock, store) = (store.clock().clone(), store.clone());
    metrics.database(move || clock.ahead_of_host(), move || store.connections());
    metrics
}

/// Adds what only an api and a dispatcher know: `publisher` or `consumer` with `progress`.
pub(crate) fn watch(
    metrics: &Metrics,
    publisher: Option<&Publisher>,
    consumer: Option<(&Consumer, &Progress)>,
) {
    let publisher = publisher.map(Publisher::watch);
    let consumed = consumer.map(|(consumer, _)| consumer.watch());
    if let Some(stats) = publisher.clone() {
        metrics.doorbells(move || {
            let stats = stats.borrow();
            [stats.published, stats.dropped, stats.refused]
        });
    }
    if let Some(stats) = consumed.clone() {
        metrics.parked(move || stats.borrow().parked);
    }
    if let Some((_, progress)) = consumer {
        let progress = progress.clone();
        metrics.unwritten_since(move || progress.unrecorded_since());
    }
    metrics.broker_connected(move || {
        let publishing = publisher.as_ref().map(|stats| ("publisher", stats.borrow().connected));
        let consuming = consumed.as_ref().map(|stats| ("consumer", stats.borrow().connected));
        publishing.into_iter().chain(consuming).collect()
    });
}

/// Listens on `address`.
pub(crate) fn listen(address: &ListenAddress) -> Result<TcpListener> {
    address.bind().with_context(|| format!("metrics.listen: cannot listen on {address}"))
}

/// Serves `metrics` on `listener`, if there is one, until `ended`.
pub(crate) fn serve(listener: Option<TcpListener>, metrics: Metrics, ended: CancellationToken) -> Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    tracing::info!(listen = %listener.local_addr()?, "serving metrics");
    tokio::spawn(async move {
        if let Err(error) = api::run_metrics(listener, metrics, ended).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    });
    Ok(())
}

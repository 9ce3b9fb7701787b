//! Samples the backlog for the metrics and for `GET /scaling`: it costs the same however often they are asked
//! for.

use std::time::{Duration, Instant};

use ops::Metrics;
use store::{AnyConnection, Store, StoreError, backlog};
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(5);

/// Samples until `shutdown`. While the database can't be asked, the metrics are absent.
pub(crate) async fn keep(store: Store, metrics: Metrics, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        let (began, now) = (Instant::now(), store.clock().now());
        let sampled = store.read(move |conn: &mut AnyConnection| backlog(conn, now)).await;
        metrics.transaction("sample", began, sampled.as_ref().err().map(StoreError::label));
        match sampled {
            Ok(backlog) => {
                let age = backlog.oldest_due_at.map_or(Duration::ZERO, |oldest| now.since(oldest));
                metrics.due.set([], backlog.due as f64);
                metrics.work.set([], (backlog.due + backlog.in_flight) as f64);
                metrics.oldest_due_age.set([], age.as_secs_f64());
                metrics.destinations.set(["held".into()], backlog.held_destinations as f64);
            }
            Err(error) => {
                tracing::debug!(%error, "the backlog was not sampled");
                metrics.due.clear();
                metrics.work.clear();
                metrics.oldest_due_age.clear();
            }
        }
    }
}

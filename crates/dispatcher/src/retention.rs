//! Deletion of old deliveries and runs, apart from sending: by one process at a time, in small batches, and
//! for at most half of the time.

use std::time::{Duration, Instant};

use store::{
    AnyConnection, PruneRange, Pruned, Store, StoreError, organization_ids, prune, take_pruning_turn,
};
use tokio_util::sync::CancellationToken;

/// How long deliveries and runs are kept after their end. `None` is forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Deliveries with their attempts.
    pub deliveries: Option<Duration>,
    /// Runs without any delivery left.
    pub runs: Option<Duration>,
}

/// Maximum number of rows in a batch: a few milliseconds of work.
const BATCH: usize = 200;
/// Sweeps per shortest retention period: keeping a row a tenth too long does no harm.
const PART: u32 = 10;
const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);

impl Retention {
    fn period(self) -> Option<Duration> {
        let shortest = [self.deliveries, self.runs].into_iter().flatten().min()?;
        Some((shortest / PART).clamp(SHORTEST, LONGEST))
    }
}

/// Deletes rows past their retention, periodically until `shutdown`.
pub(crate) async fn keep(store: Store, retention: Retention, shutdown: CancellationToken) {
    let Some(period) = retention.period() else { return };
    while shutdown.run_until_cancelled(tokio::time::sleep(period)).await.is_some() {
        let (began, mut removed) = (Instant::now(), Pruned::default());
        let swept = sweep(&store, retention, &shutdown, &mut removed).await;
        if let Err(error) = swept {
            tracing::debug!(%error, "deletion of old deliveries and runs incomplete");
        }
        if removed != Pruned::default() {
            let Pruned { deliveries, attempts, runs, .. } = removed;
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(deliveries, attempts, runs, took_ms, "old deliveries and runs deleted");
        }
    }
}

/// Makes one pass over all organizations. Stops early on an error, at `shutdown` or when another process has
/// its turn.
async fn sweep(
    store: &Store,
    retention: Retention,
    shutdown: &CancellationToken,
    removed: &mut Pruned,
) -> Result<(), StoreError> {
    let before = |age: Option<Duration>| age.map(|age| store.clock().now() - age);
    let (deliveries, runs) = (before(retention.deliveries), before(retention.runs));
    for org in store.read(organization_ids).await? {
        for range in PruneRange::all_of(org, deliveries, runs) {
            let mut behind = None;
            loop {
                let began = Instant::now();
                let batch = store.write(move |tx: &mut AnyConnection, _| match take_pruning_turn(tx)? {
                    true => prune(tx, range, behind, BATCH).map(Some),
                    false => Ok::<_, StoreError>(None),
                });
                let Some(batch) = batch.await? else { return Ok(()) };
                removed.add(&batch);
                let pause = tokio::time::sleep(began.elapsed());
                if shutdown.run_until_cancelled(pause).await.is_none() {
                    return Ok(());
                }
                behind = batch.behind;
                if behind.is_none() {
                    break;
                }
            }
        }
    }
    Ok(())
}

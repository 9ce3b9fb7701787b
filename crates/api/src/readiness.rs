//! Whether a process has what it needs to do its work: by signs of life, not by connections that look open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Store;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the database is asked for a sign of life, and after how long without one it counts as away: longer than
/// a busy pool or a restart of a connection takes.
const ASKED_EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// What a process needs, each as a check that answers why it is not there, in a sentence without internals. Cheap to
/// clone.
#[derive(Clone, Default)]
pub struct Readiness(Vec<Arc<dyn Fn() -> Option<String> + Send + Sync>>);

impl Readiness {
    /// Needs `store`'s database to take transactions that write. It is asked for a sign of life every second until
    /// `shutdown`.
    ///
    /// Must be called within a tokio runtime.
    pub fn of_database(store: &Store, shutdown: CancellationToken) -> Readiness {
        let asked = store.clone();
        tokio::spawn(async move {
            let mut ticks = interval(ASKED_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                if let Err(error) = asked.ping().await {
                    tracing::debug!(%error, "no sign of life from the database");
                }
            }
        });
        // Any transaction is a sign of life, so that a busy pool, in which a question waits too long, is no outage.
        let store = store.clone();
        Readiness::default().and(move || silent("the database has not answered", store.alive_at(), PATIENCE))
    }

    /// Needs another thing.
    #[must_use]
    pub fn and(mut self, reason: impl Fn() -> Option<String> + Send + Sync + 'static) -> Readiness {
        self.0.push(Arc::new(reason));
        self
    }

    /// Why the process is not ready; nothing when it is.
    pub fn reasons(&self) -> Vec<String> {
        self.0.iter().filter_map(|check| check()).collect()
    }
}

/// A reason, when the last sign of life is older than `patience`: `what` "for 7 s".
pub fn silent(what: &str, last: Instant, patience: Duration) -> Option<String> {
    let silence = last.elapsed();
    (silence > patience).then(|| format!("{what} for {} s", silence.as_secs()))
}

//! Readiness of a process, judged by signs of life rather than by connections that look open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::Store;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Interval between pings of the database.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the database may be silent before it counts as unavailable. Longer than a busy pool or a restart
/// of a connection takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The readiness checks of a process, by name. Each returns why it failed, without internals. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Vec<(&'static str, Check)>);

type Check = Arc<dyn Fn() -> Option<String> + Send + Sync>;

impl Readiness {
    /// Requires that the database of `store` accepts write transactions. Pings it every second until
    /// `shutdown`.
    ///
    /// Must be called within a tokio runtime.
    pub fn of_database(store: &Store, shutdown: CancellationToken) -> Readiness {
        let asked = store.clone();
        tokio::spawn(async move {
            let mut ticks = interval(PING_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                if let Err(error) = asked.ping().await {
                    tracing::debug!(%error, "the database did not answer a ping");
                }
            }
        });
        // Any write transaction is a sign of life: a pool too busy for the ping in time is not an outage.
        let store = store.clone();
        Readiness::default()
            .and("database", move || silent("the database has not answered", store.alive_at(), TIMEOUT))
    }

    /// Adds a check.
    #[must_use]
    pub fn and(
        mut self,
        name: &'static str,
        reason: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Readiness {
        self.0.push((name, Arc::new(reason)));
        self
    }

    /// Returns why the process is not ready; empty if it is ready.
    pub fn reasons(&self) -> Vec<String> {
        self.0.iter().filter_map(|(_, check)| check()).collect()
    }

    /// Returns each check's name, and whether it passes.
    pub fn checks(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.0.iter().map(|(name, check)| (*name, check().is_none()))
    }
}

/// Returns a reason, such as "`what` for 7 s", if the last sign of life is older than `patience`.
pub fn silent(what: &str, last: Instant, patience: Duration) -> Option<String> {
    let silence = last.elapsed();
    (silence > patience).then(|| format!("{what} for {} s", silence.as_secs()))
}

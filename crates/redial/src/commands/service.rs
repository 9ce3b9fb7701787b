//! What `api` and `dispatcher` have in common: a database to wait for, its clock, and a signal to stop at.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use store::{DatabaseUrl, Store, StoreError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::signals;

/// How long a service waits for a database that is away when it starts.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// What a service runs on.
pub(crate) struct Service {
    pub(crate) store: Store,
    /// Cancelled at SIGTERM or SIGINT, or when the schema no longer admits this program.
    pub(crate) shutdown: CancellationToken,
    refusal: Arc<OnceLock<StoreError>>,
}

impl Service {
    /// The end of a service: an error if it was not asked to stop.
    pub(crate) fn ended(&self) -> anyhow::Result<()> {
        match self.refusal.get() {
            Some(refusal) => bail!("{refusal}"),
            None => Ok(()),
        }
    }
}

/// Opens a service's database and keeps its clock aligned.
pub(crate) async fn start(url: &DatabaseUrl, connections: u32) -> anyhow::Result<Service> {
    let shutdown = CancellationToken::new();
    let stopped = signals::stop();
    tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            let signal = stopped.await;
            tracing::info!(signal, "stopping");
            shutdown.cancel();
        }
    });
    let opening = patiently(PATIENCE, async || Store::open(url, connections).await);
    let opened =
        shutdown.run_until_cancelled(opening).await.context("stopped while waiting for the database")?;
    let store = opened.with_context(|| format!("cannot use {url}"))?;
    let refusal = Arc::new(OnceLock::new());
    tokio::spawn({
        let (store, shutdown, refusal) = (store.clone(), shutdown.clone(), refusal.clone());
        async move {
            if let Err(error) = store.keep_aligned(shutdown.clone()).await {
                tracing::error!(%error, "stopping");
                let _ = refusal.set(error);
                shutdown.cancel();
            }
        }
    });
    Ok(Service { store, shutdown, refusal })
}

/// For readiness: that nobody has asked the process to stop.
pub(crate) fn serving(stopping: &CancellationToken) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let stopping = stopping.clone();
    move || stopping.is_cancelled().then(|| "stopping, what is in flight is finished".to_owned())
}

/// A token that is cancelled `delay` after `stopping` was, or at a second signal.
pub(crate) fn delayed(stopping: CancellationToken, delay: Duration) -> CancellationToken {
    if delay.is_zero() {
        return stopping;
    }
    let delayed = CancellationToken::new();
    tokio::spawn({
        let delayed = delayed.clone();
        async move {
            stopping.cancelled().await;
            tokio::select! {
                () = sleep(delay) => {}
                signal = signals::stop() => tracing::info!(signal, "not waiting any longer"),
            }
            delayed.cancel();
        }
    });
    delayed
}

/// Tries again while the database is away, until `patience` is over.
async fn patiently<T>(
    patience: Duration,
    mut open: impl AsyncFnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let deadline = Instant::now() + patience;
    loop {
        match open().await {
            Err(error) if error.is_outage() && Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(PAUSE).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> StoreError {
        StoreError::Unavailable("connection refused".into())
    }

    #[tokio::test]
    async fn a_database_that_comes_back_is_used() {
        let mut tries = 0;
        let opened = patiently(PATIENCE, async || {
            tries += 1;
            if tries < 2 { Err(away()) } else { Ok(tries) }
        });
        assert_eq!(opened.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn one_that_stays_away_is_given_up_when_patience_is_over() {
        assert!(patiently(Duration::ZERO, async || Err::<(), _>(away())).await.is_err());
    }

    #[tokio::test]
    async fn a_schema_that_does_not_fit_is_not_waited_for() {
        let mut tries = 0;
        let opened = patiently(PATIENCE, async || {
            tries += 1;
            Err::<(), _>(StoreError::Schema("older".into()))
        });
        assert!(opened.await.is_err());
        assert_eq!(tries, 1);
    }
}

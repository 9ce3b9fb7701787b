//! Shared by `api` and `dispatcher`: waiting for the database, clock alignment, and shutdown on a signal.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use store::{DatabaseUrl, Store, StoreError};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::signals;

/// How long a service waits for an unavailable database at startup.
const TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// The database and shutdown token of a service.
pub(crate) struct Service {
    pub(crate) store: Store,
    /// Cancelled on SIGTERM or SIGINT, or when the schema no longer admits this program.
    pub(crate) shutdown: CancellationToken,
    refusal: Arc<OnceLock<StoreError>>,
}

impl Service {
    /// Returns an error if the service stopped for another reason than a signal.
    pub(crate) fn ended(&self) -> anyhow::Result<()> {
        match self.refusal.get() {
            Some(refusal) => bail!("{refusal}"),
            None => Ok(()),
        }
    }
}

/// Opens a service's database, keeps its clock aligned, and handles termination signals.
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
    let opening = patiently(TIMEOUT, async || Store::open(url, connections).await);
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

/// Readiness: the process has not been told to stop.
pub(crate) fn serving(stopping: &CancellationToken) -> impl Fn() -> Option<String> + Send + Sync + use<> {
    let stopping = stopping.clone();
    move || stopping.is_cancelled().then(|| "stopping, what is in flight is finished".to_owned())
}

/// Returns a token that is cancelled `delay` after `stopping`, or on a second signal.
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
                signal = signals::stop() => tracing::info!(signal, "ending the drain delay"),
            }
            delayed.cancel();
        }
    });
    delayed
}

/// Retries while the database is unavailable, for up to `patience`.
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
    async fn an_unavailable_database_is_retried() {
        let mut tries = 0;
        let opened = patiently(TIMEOUT, async || {
            tries += 1;
            if tries < 2 { Err(away()) } else { Ok(tries) }
        });
        assert_eq!(opened.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn retries_end_after_the_timeout() {
        assert!(patiently(Duration::ZERO, async || Err::<(), _>(away())).await.is_err());
    }

    #[tokio::test]
    async fn an_incompatible_schema_is_not_retried() {
        let mut tries = 0;
        let opened = patiently(TIMEOUT, async || {
            tries += 1;
            Err::<(), _>(StoreError::Schema("older".into()))
        });
        assert!(opened.await.is_err());
        assert_eq!(tries, 1);
    }
}

//! The machine's actions that are one transaction each. Each function returns the event that reports the
//! result.

use std::time::{Duration, Instant};

use engine::dispatch::{Batch, Claim, Event, Recovery};
use engine::{AttemptResult, Effect, HeldAttempt};
use ops::Metrics;
use store::{AnyConnection, RowsRefused, Store, StoreError};

/// Transaction timeout, above the server's `statement_timeout`; reached only if the server is silent.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Claims attempts.
pub(crate) async fn claim(store: Store, metrics: Metrics, claim: Claim, lease: Duration) -> Event {
    let began = Instant::now();
    let claiming = move |tx: &mut AnyConnection, now| store::claim(tx, now, lease, &claim);
    let claimed: Result<_, RowsRefused> = store.write_within(TIMEOUT, claiming).await;
    metrics.transaction("claim", began, claimed.as_ref().err().map(|refused| refused.error.label()));
    match claimed {
        Ok(store::ClaimResult { claimed, is_recovered, poll }) => {
            Event::Claimed { claimed, is_recovered, poll }
        }
        Err(RowsRefused { error, .. }) if error.is_outage() => {
            tracing::warn!(%error, "nothing claimed: the database is unavailable");
            Event::ClaimUnknown
        }
        Err(RowsRefused { rows, error }) => {
            tracing::warn!(%error, rows = rows.len(), "claim refused");
            Event::ClaimRefused { rows }
        }
    }
}

/// Records the results of attempts.
pub(crate) async fn record(store: Store, metrics: Metrics, Batch { id, results }: Batch) -> Event {
    let (began, rows) = (Instant::now(), results.len());
    let recording = move |tx: &mut AnyConnection, now| store::finish(tx, now, &results);
    let recorded: Result<_, StoreError> = store.write_within(TIMEOUT, recording).await;
    metrics.transaction("record", began, recorded.as_ref().err().map(StoreError::label));
    match recorded {
        Ok(effects) => Event::Recorded { id, effects },
        Err(error) if error.is_outage() => {
            tracing::warn!(%error, rows, "results not recorded yet");
            Event::RecordUnknown { id }
        }
        Err(error) => {
            tracing::warn!(%error, rows, "results refused");
            Event::RecordRefused { id, is_violation: error.is_violation() }
        }
    }
}

/// Expired leases that were recorded, with their results.
pub(crate) type Recovered = Vec<(HeldAttempt, AttemptResult, Effect)>;

/// Records expired leases.
pub(crate) async fn recover_leases(store: Store, metrics: Metrics, recovery: Recovery) -> (Event, Recovered) {
    let began = Instant::now();
    let recovering = move |tx: &mut AnyConnection, now| {
        let mut recovery = recovery;
        let (limit, is_reversed) = (recovery.limit, recovery.is_reversed);
        let stepped_over = std::mem::take(&mut recovery.stepped_over);
        store::recover_leases(tx, now, limit, &stepped_over, is_reversed, |held| recovery.settle(held, now))
    };
    let recovered: Result<_, RowsRefused> = store.write_within(TIMEOUT, recovering).await;
    metrics.transaction("recover", began, recovered.as_ref().err().map(|refused| refused.error.label()));
    match recovered {
        Ok(recovered) => (Event::LeasesRecovered { count: recovered.len() }, recovered),
        Err(RowsRefused { error, .. }) if error.is_outage() => {
            tracing::debug!(%error, "expired leases not recorded yet");
            (Event::RecoveryUnknown, Vec::new())
        }
        Err(RowsRefused { rows, error }) => {
            tracing::warn!(%error, rows = rows.len(), "expired leases not recorded");
            (Event::RecoveryRefused { rows }, Vec::new())
        }
    }
}

/// Deletes holds that are no longer needed. A failure is only logged: the machine repeats this every minute.
pub(crate) async fn tidy(store: Store) {
    if let Err(error) = store.write_within(TIMEOUT, store::forget_holds).await {
        tracing::debug!(%error, "old holds not deleted");
    }
}

//! Writes results down: whatever gathered while the last batch was being written is the next batch, and a lone
//! result never waits for company.

use std::collections::HashSet;

use store::{Effect, Settlement, Store, StoreError, finish};
use tokio::sync::mpsc;

use crate::attempt::Done;
use crate::{BATCH, OUTAGE_PAUSE, Pulse};

/// Writes until the last sender is gone.
pub(crate) async fn run(store: Store, mut results: mpsc::Receiver<Done>, pulse: Pulse) {
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(done) => done,
            None => match results.recv().await {
                Some(done) => done,
                None => return,
            },
        };
        let mut deliveries = HashSet::from([first.finished.delivery_id]);
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(done) = results.try_recv()
        {
            // A batch has at most one result of a delivery.
            if deliveries.insert(done.finished.delivery_id) {
                batch.push(done);
            } else {
                left_over = Some(done);
                break;
            }
        }
        write(&store, batch).await;
        pulse.beat();
    }
}

/// Writes a batch, again and again while the database is away. A batch refused for its data is written row by
/// row, so that one bad row does not hold back the others.
async fn write(store: &Store, batch: Vec<Done>) {
    let refused = match write_once(store, &batch).await {
        Ok(effects) => return report(&batch, &effects),
        Err(error) => error,
    };
    if batch.len() == 1 {
        let done = &batch[0].finished;
        tracing::error!(error = %refused, delivery_id = %done.delivery_id, attempt = done.record.number,
            "result refused by the database; the lease will end as outcome_unknown");
        return;
    }
    tracing::warn!(error = %refused, rows = batch.len(), "batch refused, writing row by row");
    for done in batch {
        Box::pin(write(store, vec![done])).await;
    }
}

async fn write_once(store: &Store, batch: &[Done]) -> Result<Vec<Effect>, StoreError> {
    loop {
        let results: Vec<_> = batch.iter().map(|done| done.finished.clone()).collect();
        match store.write(move |tx, now| finish(tx, now, &results)).await {
            Err(error) if error.is_outage() => {
                tracing::warn!(%error, rows = batch.len(), "results not written yet");
                tokio::time::sleep(OUTAGE_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// One line per attempt.
fn report(batch: &[Done], effects: &[Effect]) {
    for (done, effect) in batch.iter().zip(effects) {
        let (finished, held) = (&done.finished, &done.held);
        let record = &finished.record;
        let next_attempt_at = match finished.settlement {
            Settlement::RetryAt(at) => Some(at.to_string()),
            _ => None,
        };
        tracing::info!(
            delivery_id = %finished.delivery_id,
            org_id = %held.org_id,
            run_id = %held.run_id,
            attempt = record.number,
            settlement = match finished.settlement {
                Settlement::Succeeded => "succeeded",
                Settlement::RetryAt(_) => "retry",
                Settlement::Failed => "failed",
            },
            status = record.status_code,
            reason = record.failure.as_ref().map(|failure| <&str>::from(failure.reason)),
            detail = record.failure.as_ref().map(|failure| failure.detail.as_str()),
            response_time_ms = record.response_time_ms,
            next_attempt_at,
            claimed_at = %record.claimed_at,
            request_id = held.request_id,
            runflow_request_id = done.runflow_request_id.map(tracing::field::display),
            effect = match effect {
                Effect::Finished => "finished",
                Effect::Late { closed: true } => "late, closed the delivery",
                Effect::Late { closed: false } => "late",
                Effect::Dropped => "dropped",
            },
            "attempt"
        );
    }
}

//! Writes results down: whatever gathered while the last batch was being written is the next batch, and a lone
//! result never waits for company.

use std::collections::HashSet;
use std::time::Duration;

use store::{Effect, Settlement, Store, StoreError, finish};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::attempt::Done;
use crate::{BATCH, DATABASE_PATIENCE, OUTAGE_PAUSE, Pulse};

/// How long a result that is refused by itself is tried again: about as long as a person needs to look at the cause.
const KEPT: Duration = Duration::from_secs(600);
const KEPT_PAUSE: Duration = Duration::from_secs(1);

/// Writes until the last sender is gone and nothing is left.
pub(crate) async fn run(store: Store, mut results: mpsc::Receiver<Done>, pulse: Pulse) {
    let mut finisher = Finisher { store, refused: JoinSet::new() };
    let mut left_over = None;
    loop {
        let first = match left_over.take() {
            Some(done) => done,
            None => tokio::select! {
                Some(_) = finisher.refused.join_next() => {
                    pulse.records(!finisher.refused.is_empty());
                    continue;
                }
                received = results.recv() => match received {
                    Some(done) => done,
                    None => break,
                },
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
        pulse.records(true);
        finisher.write(batch).await;
        pulse.records(!finisher.refused.is_empty());
    }
    finisher.refused.join_all().await;
    pulse.records(false);
}

struct Finisher {
    store: Store,
    /// Results that were refused by themselves, each tried again in a task of its own: none holds back the others.
    refused: JoinSet<()>,
}

impl Finisher {
    /// Writes a batch, again and again while the database is away. A batch that is refused is written row by row.
    async fn write(&mut self, mut batch: Vec<Done>) {
        let refused = match write(&self.store, &batch).await {
            Ok(effects) => return report(&batch, &effects),
            Err(error) => error,
        };
        if batch.len() > 1 {
            tracing::warn!(error = %refused, rows = batch.len(), "batch refused, writing row by row");
            for done in batch {
                Box::pin(self.write(vec![done])).await;
            }
            return;
        }
        let Some(done) = batch.pop() else { return };
        if refused.is_violation() || done.slot.is_none() {
            give_up(&done, &refused);
        } else {
            tracing::warn!(error = %refused, delivery_id = %done.finished.delivery_id,
                attempt = done.finished.record.number, "result refused, kept and tried again");
            self.refused.spawn(insist(self.store.clone(), done));
        }
    }
}

/// Writes one result that is refused for a reason which may pass: a lock, a broken page, a missing right.
async fn insist(store: Store, done: Done) {
    let deadline = Instant::now() + KEPT;
    loop {
        sleep(KEPT_PAUSE).await;
        match write(&store, std::slice::from_ref(&done)).await {
            Ok(effects) => return report(&[done], &effects),
            Err(error) if error.is_violation() || Instant::now() >= deadline => {
                return give_up(&done, &error);
            }
            Err(_) => {}
        }
    }
}

async fn write(store: &Store, batch: &[Done]) -> Result<Vec<Effect>, StoreError> {
    loop {
        let results: Vec<_> = batch.iter().map(|done| done.finished.clone()).collect();
        let finishing = store.write_within(DATABASE_PATIENCE, move |tx, now| finish(tx, now, &results));
        match finishing.await {
            Err(error) if error.is_outage() => {
                tracing::warn!(%error, rows = batch.len(), "results not written yet");
                sleep(OUTAGE_PAUSE).await;
            }
            other => return other,
        }
    }
}

/// The relay finds the attempt when its lease has ended. One that it has found already, it finds again.
fn give_up(done: &Done, error: &StoreError) {
    tracing::error!(%error, delivery_id = %done.finished.delivery_id, attempt = done.finished.record.number,
        "result refused by the database; the lease will end as outcome_unknown");
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

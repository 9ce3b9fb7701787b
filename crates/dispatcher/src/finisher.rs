//! Writes results down: whatever gathered while the last batch was being written is the next batch, and a lone
//! result never waits for company.

use std::collections::HashSet;
use std::time::Duration;

use store::{Effect, Settlement, Store, StoreError, finish};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::attempt::Done;
use crate::{BATCH, DATABASE_PATIENCE, OUTAGE_PAUSE, Pulse};

/// How long a result that is refused by itself is tried again: about as long as a person needs to look at the cause.
const KEPT: Duration = Duration::from_secs(600);
const KEPT_PAUSE: Duration = Duration::from_secs(1);

/// Writes until the last sender is gone and nothing is left.
pub(crate) async fn run(store: Store, results: mpsc::Receiver<Done>, pulse: Pulse) {
    let (refused, kept) = mpsc::unbounded_channel();
    // Beside each other, so that a result that can't be written holds back no other.
    tokio::join!(write_all(&store, results, refused, &pulse), insist(&store, kept, &pulse));
}

async fn write_all(
    store: &Store,
    mut results: mpsc::Receiver<Done>,
    refused: mpsc::UnboundedSender<Done>,
    pulse: &Pulse,
) {
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
        pulse.writes(true);
        write(store, batch, &refused).await;
        pulse.writes(false);
    }
}

/// Writes a batch. One that is refused is written row by row, and what is refused by itself is kept, unless the relay
/// finds it again anyway.
async fn write(store: &Store, mut batch: Vec<Done>, refused: &mpsc::UnboundedSender<Done>) {
    let error = match write_once(store, &batch).await {
        Ok(effects) => return report(&batch, &effects),
        Err(error) => error,
    };
    if batch.len() > 1 {
        tracing::warn!(%error, rows = batch.len(), "batch refused, writing row by row");
        for done in batch {
            Box::pin(write(store, vec![done], refused)).await;
        }
        return;
    }
    let Some(done) = batch.pop() else { return };
    if error.is_violation() || done.slot.is_none() {
        return give_up(&done, &error);
    }
    tracing::warn!(%error, delivery_id = %done.finished.delivery_id, attempt = done.finished.record.number,
        "result refused, kept to be tried again");
    let _ = refused.send(done); // the other end is held as long as this one
}

/// Writes results that were refused for a reason which may pass, again and again: a lock, a broken page, a right that
/// is missing. Their slots stay taken.
async fn insist(store: &Store, mut refused: mpsc::UnboundedReceiver<Done>, pulse: &Pulse) {
    let mut kept = Vec::new();
    while let Some(done) = refused.recv().await {
        kept.push((done, Instant::now() + KEPT));
        pulse.keeps(true);
        while !kept.is_empty() {
            sleep(KEPT_PAUSE).await;
            while let Ok(done) = refused.try_recv() {
                kept.push((done, Instant::now() + KEPT));
            }
            for (done, deadline) in std::mem::take(&mut kept) {
                match write_once(store, std::slice::from_ref(&done)).await {
                    Ok(effects) => report(&[done], &effects),
                    Err(error) if error.is_violation() || Instant::now() >= deadline => {
                        give_up(&done, &error);
                    }
                    Err(_) => kept.push((done, deadline)),
                }
            }
        }
        pulse.keeps(false);
    }
}

/// Writes a batch in one transaction, again and again while the database is away.
async fn write_once(store: &Store, batch: &[Done]) -> Result<Vec<Effect>, StoreError> {
    loop {
        let results: Vec<_> = batch.iter().map(|done| done.finished.clone()).collect();
        let finishing = store.write_within(DATABASE_PATIENCE, move |tx, now| finish(tx, now, &results));
        match finishing.await {
            // A lock is somebody's on one row: the others need not wait for it.
            Err(error) if error.is_outage() && !error.is_lock_timeout() => {
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

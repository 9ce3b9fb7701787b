//! One attempt, from its claim to the result handed to the finisher.

use std::time::Duration;

use contracts::{AttemptId, FailureReason};
use rand::RngExt;
use store::{AttemptRecord, Claimed, Clock, Finished, HeldAttempt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

use crate::outcome::Outcome;
use crate::sender::Sender;
use crate::settle::{RetryPolicy, settle};
use crate::signer::Signer;

/// What every attempt needs.
pub(crate) struct Attempts {
    pub(crate) clock: Clock,
    pub(crate) sender: Sender,
    pub(crate) signer: Signer,
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) results: mpsc::Sender<Done>,
}

/// A result on its way to the database, with what its log line says and the slot it still holds: while results
/// can't be written, slots stay taken and nothing new is claimed.
pub(crate) struct Done {
    pub(crate) finished: Finished,
    pub(crate) held: HeldAttempt,
    /// `Runflow-Request-Id`, when something was sent.
    pub(crate) runflow_request_id: Option<Uuid>,
    pub(crate) _slot: Option<OwnedSemaphorePermit>,
}

impl Attempts {
    /// Makes the attempt. `lease_end` is on the clock's monotonic time, counted from before the claim.
    pub(crate) async fn make(&self, claimed: Claimed, lease_end: Duration, slot: OwnedSemaphorePermit) {
        let held = &claimed.held;
        let secret = match claimed.signing_secret_id {
            Some(id) => {
                let deadline = lease_end.saturating_sub(self.timeout);
                self.signer.secret(held.org_id, id, deadline).await.map(Some)
            }
            None => Ok(None),
        };
        let began = self.clock.monotonic();
        if began + self.timeout >= lease_end {
            // Another dispatcher may already be at the next attempt by the time this one is over.
            tracing::warn!(delivery_id = %held.delivery_id, attempt = held.attempt, "lease too short, not sent");
            return;
        }
        let (outcome, runflow_request_id) = match secret {
            Ok(secret) => {
                let id = Uuid::new_v4();
                (self.sender.send(&claimed, secret.as_ref(), self.clock.now(), id).await, Some(id))
            }
            Err(why) => (Outcome::failed(FailureReason::SigningUnavailable, why), None),
        };
        let elapsed = self.clock.monotonic().saturating_sub(began);
        let finished = self.settled(held, outcome, Some(elapsed));
        self.hand_over(Done { finished, held: claimed.held, runflow_request_id, _slot: Some(slot) }).await;
    }

    /// Puts an attempt whose dispatcher did not come back on record.
    pub(crate) async fn give_up(&self, held: HeldAttempt) {
        let detail = "the dispatcher stopped or stalled during the attempt; it may have reached the receiver";
        let finished = self.settled(&held, Outcome::failed(FailureReason::OutcomeUnknown, detail), None);
        self.hand_over(Done { finished, held, runflow_request_id: None, _slot: None }).await;
    }

    fn settled(&self, held: &HeldAttempt, outcome: Outcome, elapsed: Option<Duration>) -> Finished {
        let now = self.clock.now();
        let chance = rand::rng().random_range(-1.0..=1.0);
        let (failure, settlement) =
            settle(&outcome, held.attempt, held.max_attempts, &self.retry, now, chance);
        let answer = match outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Failed(_) => None,
        };
        Finished {
            delivery_id: held.delivery_id,
            claim_id: held.claim_id,
            record: AttemptRecord {
                id: AttemptId::new(now),
                number: held.attempt,
                failure,
                status_code: answer.as_ref().map(|answer| i32::from(answer.status)),
                response_body: answer.map(|answer| answer.body),
                response_time_ms: elapsed
                    .map(|elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)),
                claimed_at: held.claimed_at,
            },
            settlement,
        }
    }

    async fn hand_over(&self, done: Done) {
        if self.results.send(done).await.is_err() {
            tracing::error!("the finisher is gone; the attempt's lease will end as outcome_unknown");
        }
    }
}

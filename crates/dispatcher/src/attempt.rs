//! One attempt, from its claim to the result handed to the finisher.

use std::time::Duration;

use contracts::{AttemptId, FailureReason, OrgId, RunId};
use rand::RngExt;
use store::{AttemptRecord, Claimed, Clock, ExpiredLease, Finished};
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
    pub(crate) about: About,
    pub(crate) _slot: Option<OwnedSemaphorePermit>,
}

/// What the log says of an attempt beyond its record.
pub(crate) struct About {
    pub(crate) org_id: OrgId,
    pub(crate) run_id: RunId,
    /// The API request that asked for the delivery.
    pub(crate) request_id: String,
    /// `Runflow-Request-Id`, when something was sent.
    pub(crate) runflow_request_id: Option<Uuid>,
}

impl Attempts {
    /// Makes the attempt. `lease_end` is on the clock's monotonic time, counted from before the claim.
    pub(crate) async fn make(&self, claimed: Claimed, lease_end: Duration, slot: OwnedSemaphorePermit) {
        let secret = match claimed.signing_secret_id {
            Some(id) => self.signer.secret(claimed.org_id, id).await.map(Some),
            None => Ok(None),
        };
        let began = self.clock.monotonic();
        if began + self.timeout >= lease_end {
            // Another dispatcher may already be at the next attempt by the time this one is over.
            tracing::warn!(delivery_id = %claimed.delivery_id, attempt = claimed.attempt, "lease too short, not sent");
            return;
        }
        let runflow_request_id = Uuid::new_v4();
        let outcome = match &secret {
            Ok(secret) => {
                self.sender.send(&claimed, secret.as_ref(), self.clock.now(), runflow_request_id).await
            }
            Err(why) => Outcome::failed(FailureReason::SigningUnavailable, why),
        };
        let about = About {
            org_id: claimed.org_id,
            run_id: claimed.run_id,
            request_id: claimed.request_id.clone(),
            runflow_request_id: secret.is_ok().then_some(runflow_request_id),
        };
        let elapsed = self.clock.monotonic().saturating_sub(began);
        let finished = self.settled(&claimed, outcome, Some(elapsed));
        self.hand_over(Done { finished, about, _slot: Some(slot) }).await;
    }

    /// Puts an attempt whose dispatcher did not come back on record.
    pub(crate) async fn give_up(&self, lease: ExpiredLease) {
        let about = About {
            org_id: lease.org_id,
            run_id: lease.run_id,
            request_id: lease.request_id.clone(),
            runflow_request_id: None,
        };
        let detail = "the dispatcher stopped or stalled during the attempt; it may have reached the receiver";
        let outcome = Outcome::failed(FailureReason::OutcomeUnknown, detail);
        let claimed = Claimed {
            delivery_id: lease.delivery_id,
            org_id: lease.org_id,
            run_id: lease.run_id,
            callback_url: String::new(),
            payload: Vec::new(),
            signing_secret_id: None,
            attempt: lease.attempt,
            max_attempts: lease.max_attempts,
            request_id: lease.request_id,
            claim_id: lease.claim_id,
            claimed_at: lease.claimed_at,
        };
        let finished = self.settled(&claimed, outcome, None);
        self.hand_over(Done { finished, about, _slot: None }).await;
    }

    fn settled(&self, claimed: &Claimed, outcome: Outcome, elapsed: Option<Duration>) -> Finished {
        let now = self.clock.now();
        let chance = rand::rng().random_range(-1.0..=1.0);
        let (failure, settlement) =
            settle(&outcome, claimed.attempt, claimed.max_attempts, &self.retry, now, chance);
        let answer = match outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Failed(_) => None,
        };
        Finished {
            delivery_id: claimed.delivery_id,
            claim_id: claimed.claim_id,
            record: AttemptRecord {
                id: AttemptId::new(now),
                number: claimed.attempt,
                failure,
                status_code: answer.as_ref().map(|answer| i32::from(answer.status)),
                response_body: answer.map(|answer| answer.body),
                response_time_ms: elapsed
                    .map(|elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)),
                claimed_at: claimed.claimed_at,
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

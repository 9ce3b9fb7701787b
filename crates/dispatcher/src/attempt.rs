//! One attempt, from its claim to the result handed to the finisher.

use std::time::Duration;

use contracts::FailureReason;
use rand::RngExt;
use store::{Claimed, Clock, Finished, HeldAttempt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

use crate::failpoint;
use crate::outcome::Outcome;
use crate::sender::Sender;
use crate::settle::RetryPolicy;
use crate::signer::Signer;
use crate::steps::{self, Lease};

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
    /// None for an attempt that another dispatcher lost.
    pub(crate) slot: Option<OwnedSemaphorePermit>,
}

impl Attempts {
    /// Makes the attempt.
    pub(crate) async fn make(&self, claimed: Claimed, lease: Lease, slot: OwnedSemaphorePermit) {
        failpoint("claimed");
        let held = &claimed.held;
        let send_before = lease.send_before(self.timeout);
        let secret = match claimed.signing_secret_id {
            Some(id) => self.signer.secret(held.org_id, id, send_before).await.map(Some),
            None => Ok(None),
        };
        let began = self.clock.monotonic();
        let (outcome, runflow_request_id) = match secret {
            Ok(secret) => {
                let id = Uuid::new_v4();
                (self.sender.send(&claimed, secret.as_ref(), send_before, id).await, Some(id))
            }
            Err(why) => (Outcome::failed(FailureReason::SigningUnavailable, why), None),
        };
        let elapsed = self.clock.monotonic().saturating_sub(began);
        let finished = steps::finished(held, outcome, Some(elapsed), &self.retry, self.clock.now(), chance());
        self.hand_over(Done { finished, held: claimed.held, runflow_request_id, slot: Some(slot) }).await;
    }

    /// Puts an attempt whose dispatcher did not come back on record.
    pub(crate) async fn give_up(&self, held: HeldAttempt) {
        let finished = steps::lost(&held, &self.retry, self.clock.now(), chance());
        self.hand_over(Done { finished, held, runflow_request_id: None, slot: None }).await;
    }

    async fn hand_over(&self, done: Done) {
        if self.results.send(done).await.is_err() {
            tracing::error!("the finisher is gone; the attempt's lease will end as outcome_unknown");
        }
    }
}

/// How far a wait strays from its schedule.
fn chance() -> f64 {
    rand::rng().random_range(-1.0..=1.0)
}

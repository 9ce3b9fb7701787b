//! One attempt, from its claim to its outcome: signed and sent.

use std::time::Duration;

use engine::Claimed;
use engine::Outcome;
use engine::dispatch::AttemptKey;
use store::Clock;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::failpoint;
use crate::sender::Sender;
use crate::signer::Signer;

/// What every attempt needs.
pub(crate) struct Attempts {
    pub(crate) clock: Clock,
    pub(crate) sender: Sender,
    pub(crate) signer: Signer,
    pub(crate) ended: mpsc::UnboundedSender<Ended>,
}

/// An attempt that is over.
pub(crate) struct Ended {
    pub(crate) key: AttemptKey,
    pub(crate) outcome: Outcome,
    pub(crate) elapsed: Duration,
    /// `Runflow-Request-Id`, when something was sent.
    pub(crate) runflow_request_id: Option<Uuid>,
}

impl Attempts {
    /// Makes the attempt, if it can begin before `send_before` on the clock's monotonic time.
    pub(crate) async fn make(&self, claimed: Claimed, send_before: Duration) {
        failpoint("claimed");
        let held = &claimed.held;
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
            Err(unsigned) => (unsigned, None),
        };
        let elapsed = self.clock.monotonic().saturating_sub(began);
        let key = held.key();
        // Fails only when the driver is gone, after its drain.
        let _ = self.ended.send(Ended { key, outcome, elapsed, runflow_request_id });
    }
}

//! One attempt, from its claim to its outcome: signed and sent.

use std::time::Duration;

use contracts::{FailureReason, Timing};
use engine::{Claimed, Measured, Outcome};
use store::Clock;
use uuid::Uuid;

use crate::failpoint;
use crate::sender::Sender;
use crate::signer::Signer;

/// What every attempt needs.
pub(crate) struct Attempts {
    pub(crate) clock: Clock,
    pub(crate) sender: Sender,
    pub(crate) signer: Signer,
}

/// An attempt that is over.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) measured: Measured,
    /// `Runflow-Request-Id`, when something was sent.
    pub(crate) runflow_request_id: Option<Uuid>,
}

impl Attempts {
    /// Makes the attempt, if it can begin before `send_before` on the clock's monotonic time.
    pub(crate) async fn make(&self, claimed: Claimed, send_before: Duration) -> Ended {
        failpoint("claimed");
        let held = &claimed.held;
        let signing = self.signer.signing(held.org_id, claimed.signing_secret_id, send_before).await;
        let began = self.clock.monotonic();
        let (outcome, runflow_request_id) = match signing {
            Ok(signing) => {
                let id = Uuid::new_v4();
                (self.sender.send(&claimed, signing.as_ref(), send_before, id).await, Some(id))
            }
            Err(unsigned) => (unsigned, None),
        };
        let response_time = Some(self.clock.monotonic().saturating_sub(began));
        let measured = Measured { response_time, timing: Timing::default() };
        Ended { outcome, measured, runflow_request_id }
    }
}

impl Ended {
    /// An attempt whose task panicked: nobody knows how far it had come.
    pub(crate) fn panicked() -> Ended {
        let outcome =
            Outcome::failed(FailureReason::OutcomeUnknown, "the attempt broke off by an error of Redial's");
        Ended { outcome, measured: Measured::default(), runflow_request_id: None }
    }
}

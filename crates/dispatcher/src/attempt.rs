//! One attempt, from its claim to its outcome.

use std::net::IpAddr;
use std::time::Duration;

use contracts::FailureReason;
use engine::{Claimed, Measured, Outcome};
use ops::Tracer;
use uuid::Uuid;

use crate::exchange::headers::RequestIds;
use crate::exchange::sender::Sender;
use crate::exchange::span;
use crate::exchange::trace::Trace;
use crate::failpoint::failpoint;
use crate::signing::signer::Signer;

/// The parts shared by all attempts.
pub(crate) struct Attempts {
    pub(crate) sender: Sender,
    pub(crate) signer: Signer,
    pub(crate) tracer: Tracer,
}

/// A finished attempt.
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) measured: Measured,
    pub(crate) logged: Logged,
}

/// Fields of an attempt that are logged but not recorded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Logged {
    /// `Runflow-Request-Id`, if a request was built, sent or not.
    pub(crate) runflow_request_id: Option<Uuid>,
    /// The trace that the attempt belongs to.
    pub(crate) trace_id: Option<u128>,
    /// A refused address of the receiver's name. The customer must not learn of it.
    pub(crate) refused_address: Option<IpAddr>,
}

impl Attempts {
    /// Signs and sends the attempt, if it can begin before `send_before` on the clock's monotonic time.
    pub(crate) async fn make(&self, claimed: Claimed, send_before: Duration) -> Ended {
        failpoint("claimed");
        let held = &claimed.held;
        let signing = self.signer.signing(held.org_id, claimed.signing_secret_id, send_before).await;
        let signing = match signing {
            Ok(signing) => signing,
            Err(unsigned) => return Ended::unsent(unsigned),
        };
        let span = span::begin(&self.tracer, &claimed);
        let trace = Trace::begin(held.org_id, claimed.payload.len());
        let ids = RequestIds { runflow: Uuid::new_v4(), traceparent: span.traceparent() };
        let (outcome, timing) = self.sender.send(&claimed, signing.as_ref(), send_before, ids, &trace).await;
        let measured = Measured { response_time: trace.response_time(), timing };
        let logged = Logged {
            runflow_request_id: Some(ids.runflow),
            trace_id: ids.traceparent.map(|traceparent| traceparent.trace_id),
            refused_address: trace.refused_address(),
        };
        span::end(span, &claimed, &outcome, &measured);
        Ended { outcome, measured, logged }
    }
}

impl Ended {
    /// Returns the result of an attempt whose task panicked. How far the attempt got is unknown.
    pub(crate) fn panicked() -> Ended {
        let outcome =
            Outcome::failed(FailureReason::OutcomeUnknown, "the attempt broke off by an error of Redial's");
        Ended::unsent(outcome)
    }

    fn unsent(outcome: Outcome) -> Ended {
        Ended { outcome, measured: Measured::default(), logged: Logged::default() }
    }
}

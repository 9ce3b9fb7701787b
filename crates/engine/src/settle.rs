//! What follows an outcome. Time and randomness are arguments.

use std::time::Duration;

use contracts::{AttemptId, FailureReason, Timestamp};

use crate::lease::HeldAttempt;
use crate::outcome::{Failure, LocalFailure, Outcome, Response};
use crate::result::{AttemptRecord, AttemptResult, HoldChange, Settlement};
use crate::retry::{RetryPolicy, retry_after};

/// How long an attempt that was handed back waits before it may be claimed again: by another dispatcher, or by this
/// one when it is well again.
const HANDED_BACK_WAIT: Duration = Duration::from_secs(2);
/// The same where only this process's configuration can help.
const KEY_MISSING_WAIT: Duration = Duration::from_secs(30);

impl RetryPolicy {
    /// Settles an attempt that came to `outcome` after `elapsed`: what goes on record and what follows.
    /// `jitter_unit` is a random number from -1 to 1.
    pub fn settle(
        &self,
        held: &HeldAttempt,
        outcome: Outcome,
        elapsed: Option<Duration>,
        now: Timestamp,
        jitter_unit: f64,
    ) -> AttemptResult {
        let retry_after = match &outcome {
            Outcome::Answered(response) => retry_after(response, now),
            _ => None,
        };
        let hold = match retry_after {
            Some(wait) => HoldChange::HoldUntil(now + wait.min(self.hold_cap)),
            None if held.is_probe && !matches!(outcome, Outcome::NotSent(_)) => HoldChange::Open,
            None if held.is_probe => HoldChange::ProbeAgain,
            None => HoldChange::None,
        };
        let (failure, settlement) = self.judge(held, &outcome, retry_after, now, jitter_unit);
        let response = match outcome {
            Outcome::Answered(response) => Some(response),
            _ => None,
        };
        AttemptResult {
            delivery_id: held.delivery_id,
            claim_id: held.claim_id,
            destination: held.destination,
            record: AttemptRecord {
                id: AttemptId::new(now),
                number: held.attempt,
                failure,
                status_code: response.as_ref().map(|response| i32::from(response.status)),
                response_body: response.map(|response| response.body),
                response_time_ms: elapsed.map(|elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)),
                claimed_at: held.claimed_at,
            },
            settlement,
            hold,
        }
    }

    /// Settles an attempt that nobody recorded while its lease lasted.
    pub fn settle_lost(&self, held: &HeldAttempt, now: Timestamp, jitter_unit: f64) -> AttemptResult {
        let detail = "the dispatcher stopped or stalled during the attempt; it may have reached the receiver";
        let outcome = Outcome::failed(FailureReason::OutcomeUnknown, detail);
        // A probe that is lost says nothing of its destination; its own lease lets the next one go.
        let held = HeldAttempt { is_probe: false, ..held.clone() };
        self.settle(&held, outcome, None, now, jitter_unit)
    }

    fn judge(
        &self,
        held: &HeldAttempt,
        outcome: &Outcome,
        retry_after: Option<Duration>,
        now: Timestamp,
        jitter_unit: f64,
    ) -> (Option<Failure>, Settlement) {
        let failure = match outcome {
            Outcome::Answered(Response { status: 200..=299, .. }) => return (None, Settlement::Succeeded),
            Outcome::Answered(Response { status: 410, .. }) if self.stop_on_gone => {
                let detail = "the receiver answered 410 Gone, and deliveries stop on it".to_owned();
                return (Some(Failure { reason: FailureReason::Gone, detail }), Settlement::Failed);
            }
            Outcome::NotSent(cause) => {
                let wait = match cause {
                    LocalFailure::KeyMissing => KEY_MISSING_WAIT,
                    _ => HANDED_BACK_WAIT,
                };
                // Goes on record only where the lease has been recorded as lost.
                let detail = format!("not sent: {}", cause.detail());
                let failure = Failure { reason: FailureReason::Timeout, detail };
                return (Some(failure), Settlement::HandedBack(now + wait));
            }
            Outcome::Answered(response) => http_error(response.status),
            Outcome::Failed(failure) => failure.clone(),
        };
        if held.attempt >= held.max_attempts {
            return (Some(failure), Settlement::Failed);
        }
        let wait = self.wait(held.attempt, jitter_unit).max(retry_after.unwrap_or_default());
        (Some(failure), Settlement::RetryAt(now + wait))
    }
}

fn http_error(status: u16) -> Failure {
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    let phrase = phrase.map(|phrase| format!(" {phrase}")).unwrap_or_default();
    Failure { reason: FailureReason::HttpError, detail: format!("the receiver answered {status}{phrase}") }
}

//! Settles an outcome: the record and the delivery's next state. Time and randomness are arguments.

use std::time::Duration;

use contracts::{AttemptId, FailureReason, Timestamp, Timing};

use crate::lease::HeldAttempt;
use crate::outcome::{Failure, LocalFailure, Measured, Outcome, Response};
use crate::protection::{Protection, is_off};
use crate::result::{AttemptRecord, AttemptResult, HoldChange, Settlement};
use crate::retry::{RetryPolicy, retry_after};

/// The wait before an attempt that was handed back may be claimed again, by another dispatcher or by this one
/// once it has recovered.
const HANDED_BACK_WAIT: Duration = Duration::from_secs(2);
/// The same wait when only a change of this process's configuration can help.
const KEY_MISSING_WAIT: Duration = Duration::from_secs(30);

impl RetryPolicy {
    /// Settles an attempt that ended with `outcome`: returns its record and what follows. `id` becomes the
    /// record's id; `jitter_unit` is a random number from -1 to 1.
    pub fn settle(
        &self,
        held: &HeldAttempt,
        id: AttemptId,
        outcome: Outcome,
        measured: Measured,
        now: Timestamp,
        jitter_unit: f64,
    ) -> AttemptResult {
        let retry_after = match &outcome {
            Outcome::Answered(response) => retry_after(response, now),
            _ => None,
        };
        let cap = if is_off(Protection::HoldCap) { Duration::MAX } else { self.hold_cap };
        let hold = match retry_after.map(|wait| wait.min(cap)).filter(|wait| !wait.is_zero()) {
            Some(wait) => HoldChange::HoldUntil(now + wait),
            None if held.is_probe && !matches!(outcome, Outcome::NotSent(_)) => HoldChange::Open,
            None if held.is_probe => HoldChange::ProbeAgain,
            None => HoldChange::None,
        };
        let (failure, settlement) =
            self.judge(held, &outcome, &measured.timing, retry_after, now, jitter_unit);
        let response = match outcome {
            Outcome::Answered(response) => Some(response),
            _ => None,
        };
        AttemptResult {
            delivery_id: held.delivery_id,
            claim_id: held.claim_id,
            org_id: held.org_id,
            destination: held.destination,
            is_probe: held.is_probe,
            record: AttemptRecord {
                id,
                number: held.attempt,
                failure,
                status_code: response.as_ref().map(|response| i32::from(response.status)),
                response_body: response.map(|response| response.body),
                response_time_ms: measured
                    .response_time
                    .map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX)),
                timing: measured.timing,
                claimed_at: held.claimed_at,
            },
            settlement,
            hold,
        }
    }

    /// Settles an attempt whose lease ended without a recorded result, as `outcome_unknown`.
    pub fn settle_lost(
        &self,
        held: &HeldAttempt,
        id: AttemptId,
        now: Timestamp,
        jitter_unit: f64,
    ) -> AttemptResult {
        let detail = "the dispatcher stopped or stalled during the attempt; it may have reached the receiver";
        let outcome = Outcome::failed(FailureReason::OutcomeUnknown, detail);
        // A lost probe says nothing about its destination. The next one may start when its lease ends.
        let held = HeldAttempt { is_probe: false, ..held.clone() };
        self.settle(&held, id, outcome, Measured::default(), now, jitter_unit)
    }

    fn judge(
        &self,
        held: &HeldAttempt,
        outcome: &Outcome,
        timing: &Timing,
        retry_after: Option<Duration>,
        now: Timestamp,
        jitter_unit: f64,
    ) -> (Option<Failure>, Settlement) {
        let failure = match outcome {
            Outcome::Answered(Response { status: 200..=299, .. }) => return (None, Settlement::Succeeded),
            Outcome::Answered(_) if is_off(Protection::OnlySuccess) => return (None, Settlement::Succeeded),
            Outcome::Answered(Response { status: 410, .. }) if self.stop_on_gone => {
                let detail = "the receiver answered 410 Gone, and deliveries stop on it".to_owned();
                return (Some(Failure { reason: FailureReason::Gone, detail }), Settlement::Failed);
            }
            Outcome::NotSent(cause) => {
                let wait = match cause {
                    LocalFailure::KeyMissing => KEY_MISSING_WAIT,
                    LocalFailure::OverLimit => Duration::ZERO,
                    _ => HANDED_BACK_WAIT,
                };
                // Recorded only if the lease has already been recorded as lost.
                let detail = format!("not sent: {}", cause.detail());
                let failure = Failure { reason: FailureReason::Timeout, detail };
                return (Some(failure), Settlement::HandedBack(now + wait));
            }
            Outcome::Answered(response) => http_error(response.status.into(), location(timing)),
            Outcome::Failed(failure) => failure.clone(),
        };
        if held.attempt >= held.max_attempts {
            return (Some(failure), Settlement::Failed);
        }
        let asked = retry_after.filter(|_| !is_off(Protection::RetryAfter)).unwrap_or_default();
        let wait = self.wait(held.attempt, jitter_unit).max(asked);
        (Some(failure), Settlement::RetryAt(now + wait))
    }
}

/// Returns the failure for a non-2xx status, with the target of a redirect.
pub fn http_error(status: i32, location: Option<&str>) -> Failure {
    let code = u16::try_from(status).ok().and_then(|status| http::StatusCode::from_u16(status).ok());
    let phrase = code.and_then(|code| code.canonical_reason());
    let phrase = phrase.map(|phrase| format!(" {phrase}")).unwrap_or_default();
    let redirect = match (status, location) {
        (300..=399, Some(location)) => format!(" to {location}; redirects are not followed"),
        _ => String::new(),
    };
    let detail = format!("the receiver answered {status}{phrase}{redirect}");
    Failure { reason: FailureReason::HttpError, detail }
}

fn location(timing: &Timing) -> Option<&str> {
    timing.headers.as_ref()?.get("location").map(String::as_str)
}

/// Draws the random parts of a settlement: an attempt id, and the jitter unit from -1 to 1.
pub(crate) fn random_id_and_jitter(rng: &mut fastrand::Rng, now: Timestamp) -> (AttemptId, f64) {
    (AttemptId::with_random(now, rng.u128(..)), rng.f64() * 2.0 - 1.0)
}

#[cfg(test)]
mod tests;

//! What follows an outcome: pure. Time and chance are arguments.

use std::time::{Duration, SystemTime};

use contracts::{AttemptNumber, FailureReason, Timestamp};
use store::{Failure, Settlement};

use crate::outcome::{Answer, Outcome};

/// When to try again (contract section 2).
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The wait after the first attempt, after the second, …; the last one repeats. Not empty.
    pub schedule: Vec<Duration>,
    /// How far a wait may stray from the schedule, as a share of it: 0.1 is ±10 %.
    pub jitter: f64,
    /// Whether a 410 ends the delivery.
    pub stop_on_gone: bool,
}

/// A receiver may ask for more patience than the schedule has, up to this much.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

impl RetryPolicy {
    /// The wait after `attempt`, strayed by `chance`, a number from -1 to 1.
    fn wait(&self, attempt: AttemptNumber, chance: f64) -> Duration {
        let place = usize::try_from(attempt - 1).unwrap_or(0).min(self.schedule.len().saturating_sub(1));
        let wait = self.schedule.get(place).copied().unwrap_or_default();
        wait.mul_f64((1.0 + self.jitter * chance).max(0.0))
    }
}

/// Settles an attempt: why it failed, if it did, and what follows. `chance` is a random number from -1 to 1.
pub(crate) fn settle(
    outcome: &Outcome,
    attempt: AttemptNumber,
    max_attempts: AttemptNumber,
    policy: &RetryPolicy,
    now: Timestamp,
    chance: f64,
) -> (Option<Failure>, Settlement) {
    let (failure, patience) = match outcome {
        Outcome::Answered(Answer { status: 200..=299, .. }) => return (None, Settlement::Succeeded),
        Outcome::Answered(Answer { status: 410, .. }) if policy.stop_on_gone => {
            let detail = "the receiver answered 410 Gone, and deliveries stop on it".to_owned();
            return (Some(Failure { reason: FailureReason::Gone, detail }), Settlement::Failed);
        }
        Outcome::Answered(answer) => (refusal(answer.status), retry_after(answer, now)),
        Outcome::Failed(failure) => (failure.clone(), None),
    };
    if attempt >= max_attempts {
        return (Some(failure), Settlement::Failed);
    }
    let wait = policy.wait(attempt, chance).max(patience.unwrap_or_default());
    (Some(failure), Settlement::RetryAt(now + wait))
}

fn refusal(status: u16) -> Failure {
    let phrase = reqwest::StatusCode::from_u16(status).ok().and_then(|code| code.canonical_reason());
    let phrase = phrase.map(|phrase| format!(" {phrase}")).unwrap_or_default();
    Failure { reason: FailureReason::HttpError, detail: format!("the receiver answered {status}{phrase}") }
}

/// The wait a 429 or 503 asks for, in seconds or as an HTTP date (RFC 9110 section 10.2.3), capped.
fn retry_after(answer: &Answer, now: Timestamp) -> Option<Duration> {
    if !matches!(answer.status, 429 | 503) {
        return None;
    }
    let text = answer.retry_after.as_deref()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            let since_1970 = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            (Timestamp::from_micros(0) + since_1970).since(now)
        }
    };
    Some(wait.min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> RetryPolicy {
        let schedule = vec![Duration::from_secs(10), Duration::from_secs(60)];
        RetryPolicy { schedule, jitter: 0.1, stop_on_gone: false }
    }

    fn now() -> Timestamp {
        Timestamp::parse("2023-11-07T05:31:56Z").unwrap()
    }

    fn answered(status: u16, retry_after: Option<&str>) -> Outcome {
        let retry_after = retry_after.map(str::to_owned);
        Outcome::Answered(Answer { status, body: String::new(), retry_after })
    }

    fn wait_after(outcome: &Outcome, attempt: AttemptNumber) -> Option<Duration> {
        match settle(outcome, attempt, 8, &policy(), now(), 0.0).1 {
            Settlement::RetryAt(at) => Some(at.since(now())),
            _ => None,
        }
    }

    #[test]
    fn any_2xx_succeeds_and_anything_else_is_retried() {
        for status in [200, 201, 204, 299] {
            assert_eq!(
                settle(&answered(status, None), 1, 8, &policy(), now(), 0.0),
                (None, Settlement::Succeeded)
            );
        }
        for status in [100, 301, 302, 400, 404, 410, 429, 500, 503] {
            assert_eq!(wait_after(&answered(status, None), 1), Some(Duration::from_secs(10)), "{status}");
        }
    }

    #[test]
    fn waits_follow_the_schedule_and_its_last_one_repeats() {
        let waits: Vec<_> = (1..=4).map(|n| wait_after(&answered(500, None), n).unwrap().as_secs()).collect();
        assert_eq!(waits, [10, 60, 60, 60]);
    }

    #[test]
    fn the_last_attempt_of_the_budget_fails_the_delivery() {
        let (failure, settlement) = settle(&answered(503, None), 8, 8, &policy(), now(), 0.0);
        assert_eq!(settlement, Settlement::Failed);
        assert_eq!(failure.unwrap().detail, "the receiver answered 503 Service Unavailable");
    }

    #[test]
    fn retry_after_lengthens_a_wait_but_never_shortens_it_and_is_capped() {
        let wait = |status, header| wait_after(&answered(status, Some(header)), 1).unwrap().as_secs();
        assert_eq!(wait(503, "30"), 30);
        assert_eq!(wait(429, "30"), 30);
        assert_eq!(wait(503, "3"), 10);
        assert_eq!(wait(503, "86400"), 3600);
        assert_eq!(wait(503, "Tue, 07 Nov 2023 05:32:56 GMT"), 60);
        assert_eq!(wait(503, "Mon, 06 Nov 2023 05:32:56 GMT"), 10);
        assert_eq!(wait(503, "soon"), 10);
        assert_eq!(wait(500, "30"), 10);
    }

    #[test]
    fn a_410_ends_the_delivery_only_when_asked_to() {
        let stop = RetryPolicy { stop_on_gone: true, ..policy() };
        let (failure, settlement) = settle(&answered(410, None), 1, 8, &stop, now(), 0.0);
        assert_eq!((failure.unwrap().reason, settlement), (FailureReason::Gone, Settlement::Failed));
    }

    proptest! {
        #[test]
        fn jitter_keeps_a_wait_within_its_share(attempt in 1..8_i32, chance in -1.0..=1.0_f64) {
            let Settlement::RetryAt(at) = settle(&answered(500, None), attempt, 8, &policy(), now(), chance).1
            else { panic!("budget is left") };
            let planned = if attempt == 1 { 10.0 } else { 60.0 };
            let ratio = at.since(now()).as_secs_f64() / planned;
            prop_assert!((0.9 - 1e-6..=1.1 + 1e-6).contains(&ratio), "{ratio}");
        }
    }
}

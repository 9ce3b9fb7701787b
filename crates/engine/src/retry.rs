//! When to try again (contract section 2).

use std::time::{Duration, SystemTime};

use contracts::{AttemptNumber, Timestamp};

use crate::outcome::Response;

/// The retry schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The wait after the first attempt, after the second, …; the last one repeats. Not empty.
    pub schedule: Vec<Duration>,
    /// How far a wait may stray from the schedule, as a share of it: 0.1 is ±10 %.
    pub jitter: f64,
    /// Whether a 410 ends the delivery.
    pub stop_on_gone: bool,
    /// The longest that a `Retry-After` holds its whole destination.
    pub hold_cap: Duration,
}

/// A receiver may ask for longer waits than the schedule has, up to this one.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

impl RetryPolicy {
    /// The wait after `attempt`. `jitter_unit` is a random number from -1 to 1.
    pub(crate) fn wait(&self, attempt: AttemptNumber, jitter_unit: f64) -> Duration {
        let index = usize::try_from(attempt - 1).unwrap_or(0).min(self.schedule.len().saturating_sub(1));
        let wait = self.schedule.get(index).copied().unwrap_or_default();
        wait.mul_f64((1.0 + self.jitter * jitter_unit).max(0.0))
    }
}

/// The wait a 429 or 503 asks for, in seconds or as an HTTP date (RFC 9110 section 10.2.3), capped.
pub(crate) fn retry_after(response: &Response, now: Timestamp) -> Option<Duration> {
    if !matches!(response.status, 429 | 503) {
        return None;
    }
    let text = response.retry_after.as_deref()?.trim();
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

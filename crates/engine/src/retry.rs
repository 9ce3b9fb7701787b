//! The time of a retry (contract section 2).

use std::time::{Duration, SystemTime};

use contracts::{AttemptNumber, Timestamp};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::outcome::Response;

/// The retry schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The waits after the first attempt, the second, and so on; the last one repeats. Not empty.
    pub schedule: Vec<Duration>,
    /// The largest deviation of a wait from the schedule, as a fraction: 0.1 is ±10 %.
    pub jitter: f64,
    /// Whether a 410 response ends the delivery.
    pub stop_on_gone: bool,
    /// The longest hold of a whole destination by a `Retry-After`.
    pub hold_cap: Duration,
}

/// The longest wait that a `Retry-After` can ask for, even beyond the schedule.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

impl RetryPolicy {
    /// Returns the wait after `attempt`. `jitter_unit` is a random number from -1 to 1.
    pub(crate) fn wait(&self, attempt: AttemptNumber, jitter_unit: f64) -> Duration {
        let index = usize::try_from(attempt - 1).unwrap_or(0).min(self.schedule.len().saturating_sub(1));
        let wait = self.schedule.get(index).copied().unwrap_or_default();
        wait.mul_f64((1.0 + self.jitter * jitter_unit).max(0.0))
    }
}

/// Returns the wait that a 429 or 503 asks for (RFC 9110 section 10.2.3), the longest of several, capped at
/// [`LONGEST_RETRY_AFTER`].
pub(crate) fn retry_after(response: &Response, now: Timestamp) -> Option<Duration> {
    if !matches!(response.status, 429 | 503) {
        return None;
    }
    response.retry_after.iter().flat_map(|header| waits(header, now)).max()
}

/// Returns the waits in a comma-separated list. A date itself contains a comma, after the weekday.
fn waits(list: &str, now: Timestamp) -> impl Iterator<Item = Duration> {
    let ends = list.match_indices(',').map(|(at, _)| at).chain([list.len()]);
    let mut start = 0;
    let mut weekday = 0;
    ends.filter_map(move |end| {
        let (alone, dated) = (&list[start..end], &list[weekday..end]);
        (weekday, start) = (start, end + 1);
        let wait = seconds(alone).or_else(|| Some(date(dated).or_else(|| date(alone))?.since(now)));
        wait.map(|wait| wait.min(LONGEST_RETRY_AFTER))
    })
}

/// Parses a number of seconds of any size. More lenient than the RFC, it accepts a fraction.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let seconds: f64 = text.parse().ok()?;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Parses a date in one of HTTP's three formats, or in the widespread email format with an offset (RFC 2822).
fn date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let micros = match httpdate::parse_http_date(text) {
        Ok(date) => date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros(),
        Err(_) => {
            let known_zone = text.strip_suffix("UTC").map(|text| format!("{text}GMT"));
            let date = OffsetDateTime::parse(known_zone.as_deref().unwrap_or(text), &Rfc2822).ok()?;
            u128::try_from(date.unix_timestamp()).ok()? * 1_000_000
        }
    };
    i64::try_from(micros).ok().map(Timestamp::from_micros)
}

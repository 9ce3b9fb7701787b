//! A timestamp in whole microseconds and its two text formats.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use utoipa::ToSchema;

/// A point in time: microseconds since 1970-01-01 UTC, within the years 1 to 9999. Both databases store it
/// exactly. `Display` and serde use RFC 3339 with `Z`, the API's format (contract section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, format = DateTime)]
pub struct Timestamp(i64);

/// Why a text is not a [`Timestamp`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected a datetime with an offset, such as 2023-11-07T05:31:56Z")]
pub struct TimestampError;

/// 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999Z: the range of Python's datetime.
const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

impl Timestamp {
    /// Returns a timestamp from microseconds since 1970, clamped to the years 1 to 9999.
    pub fn from_micros(micros: i64) -> Timestamp {
        Timestamp(micros.clamp(*RANGE.start(), *RANGE.end()))
    }

    /// Returns the microseconds since 1970.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the seconds since 1970, rounded down, as in `webhook-timestamp`.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Parses RFC 3339. Digits beyond microseconds are truncated.
    pub fn parse(text: &str) -> Result<Timestamp, TimestampError> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| TimestampError)?;
        let micros = moment.unix_timestamp_nanos().div_euclid(1_000);
        i64::try_from(micros)
            .ok()
            .filter(|micros| RANGE.contains(micros))
            .map(Timestamp)
            .ok_or(TimestampError)
    }

    /// Returns the text of Python's `datetime.isoformat()` in UTC: with `+00:00`, and six fractional digits
    /// or no fraction (contract section 2).
    pub fn isoformat(self) -> String {
        format!("{}+00:00", self.date_and_time())
    }

    /// Returns the duration since `earlier`, or zero if `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn date_and_time(self) -> String {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH) // unreachable: RANGE is within what `time` can hold
            .to_offset(UtcOffset::UTC);
        let (year, month, day) = moment.to_calendar_date();
        let (hour, minute, second, micros) = moment.to_hms_micro();
        let mut text = format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}", u8::from(month));
        if micros != 0 {
            text.push_str(&format!(".{micros:06}"));
        }
        text
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}Z", self.date_and_time())
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, duration: Duration) -> Timestamp {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.0.saturating_add(micros))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    fn sub(self, duration: Duration) -> Timestamp {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_micros(self.0.saturating_sub(micros))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isoformat_writes_six_digits_of_fraction_or_none() {
        let whole = Timestamp::parse("2023-11-07T05:31:56Z").unwrap();
        let fraction = Timestamp::parse("2023-11-07T05:31:56.12Z").unwrap();
        assert_eq!(whole.isoformat(), "2023-11-07T05:31:56+00:00");
        assert_eq!(fraction.isoformat(), "2023-11-07T05:31:56.120000+00:00");
        assert_eq!(fraction.to_string(), "2023-11-07T05:31:56.120000Z");
    }

    #[test]
    fn an_offset_is_required_and_converted_to_utc() {
        assert_eq!(Timestamp::parse("2023-11-07T05:31:56"), Err(TimestampError));
        let moment = Timestamp::parse("2023-11-07T07:31:56.9999999+02:00").unwrap();
        assert_eq!(moment.to_string(), "2023-11-07T05:31:56.999999Z");
    }

    #[test]
    fn years_outside_pythons_range_are_refused() {
        assert_eq!(Timestamp::parse("0001-01-01T00:00:00+01:00"), Err(TimestampError));
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59-01:00"), Err(TimestampError));
    }
}

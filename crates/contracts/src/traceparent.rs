//! The position of a request in a trace, as the header `traceparent` of W3C Trace Context carries it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// A `traceparent` (W3C Trace Context, level 1). Its text is always of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// Identifies the trace. Not 0.
    pub trace_id: u128,
    /// Identifies the span that the next one continues. Not 0.
    pub parent_id: u64,
    /// Whether the spans of this trace are recorded.
    pub is_sampled: bool,
}

/// A text is not a `traceparent`.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("not a traceparent of W3C Trace Context")]
pub struct TraceparentError;

/// Length of the text in version 00, in bytes.
const LENGTH: usize = 55;

impl FromStr for Traceparent {
    type Err = TraceparentError;

    /// Parses version 00, and of each later version the part that this version knows.
    fn from_str(text: &str) -> Result<Traceparent, TraceparentError> {
        let (known, rest) = text.split_at_checked(LENGTH).ok_or(TraceparentError)?;
        let parts: Vec<&str> = known.split('-').collect();
        let [version, trace_id, parent_id, flags] = parts[..] else { return Err(TraceparentError) };
        let fits = match hex(version, 2)? {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let trace_id = hex(trace_id, 32)?;
        let parent_id = u64::try_from(hex(parent_id, 16)?).map_err(|_| TraceparentError)?;
        let is_sampled = hex(flags, 2)? & 1 == 1;
        if !fits || trace_id == 0 || parent_id == 0 {
            return Err(TraceparentError);
        }
        Ok(Traceparent { trace_id, parent_id, is_sampled })
    }
}

/// Parses `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Result<u128, TraceparentError> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != digits || !is_hex {
        return Err(TraceparentError);
    }
    u128::from_str_radix(text, 16).map_err(|_| TraceparentError)
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traceparent { trace_id, parent_id, is_sampled } = self;
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(*is_sampled))
    }
}

impl Serialize for Traceparent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Traceparent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Traceparent, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_written_as_it_was_read() {
        let read: Traceparent = EXAMPLE.parse().unwrap();
        assert_eq!(read.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((read.parent_id, read.is_sampled), (0xb7ad_6b71_6920_3331, true));
        assert_eq!(read.to_string(), EXAMPLE);
        let not_sampled = format!("{}-00", &EXAMPLE[..52]);
        assert_eq!(not_sampled.parse::<Traceparent>().unwrap().to_string(), not_sampled);
    }

    #[test]
    fn unknown_flags_and_later_versions_are_read_as_far_as_known() {
        let flags = format!("{}-ff", &EXAMPLE[..52]);
        assert_eq!(flags.parse::<Traceparent>().unwrap().to_string(), EXAMPLE);
        for later in [format!("cc{}", &EXAMPLE[2..]), format!("cc{}-what-is-this", &EXAMPLE[2..])] {
            assert_eq!(later.parse::<Traceparent>().unwrap().to_string(), EXAMPLE);
        }
    }

    #[test]
    fn a_malformed_traceparent_is_refused() {
        let (zero_trace, zero_parent) = ("0".repeat(32), "0".repeat(16));
        for text in [
            "",
            "é",
            "00",
            &EXAMPLE[..54],
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace('-', "_"),
            &EXAMPLE.replace("0af7", "+af7"),
            &EXAMPLE.replace("0af7", "0aé"),
            &format!("ff{}", &EXAMPLE[2..]),
            &format!("{EXAMPLE}-more"),
            &format!("cc{}more", &EXAMPLE[2..]),
            &format!("00-{zero_trace}-b7ad6b7169203331-01"),
            &format!("00-0af7651916cd43dd8448eb211c80319c-{zero_parent}-01"),
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
        ] {
            assert_eq!(text.parse::<Traceparent>(), Err(TraceparentError), "{text}");
        }
    }
}

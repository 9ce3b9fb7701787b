//! Destinations of deliveries, the unit of fairness.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use url::Url;

use crate::OrgId;

/// A 64-bit hash of an organization and the origin (scheme, host, port) of a `callback_url`. The only effect
/// of a collision is that two destinations share their limits. Written as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination(i64);

impl Destination {
    /// Returns the destination of an organization's URL. All invalid URLs of an organization share one.
    pub fn of(org: OrgId, callback_url: &str) -> Destination {
        let origin = Url::parse(callback_url).map(|url| url.origin().ascii_serialization());
        let hash = Sha256::new().chain_update(org.0.as_bytes()).chain_update(origin.unwrap_or_default());
        let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
        Destination(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Returns the hash as stored in the database.
    pub fn as_i64(self) -> i64 {
        self.0
    }
}

impl From<i64> for Destination {
    fn from(hash: i64) -> Destination {
        Destination(hash)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Destination, D::Error> {
        let text = String::deserialize(deserializer)?;
        let hash = u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)?;
        Ok(Destination(hash.cast_signed()))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_destination_is_an_organization_and_an_origin() {
        let (org, other) = (OrgId(Uuid::from_u128(1)), OrgId(Uuid::from_u128(2)));
        let destination = Destination::of(org, "https://hooks.example.com/a?b=c");
        for same in ["https://HOOKS.example.com:443/", "https://hooks.example.com/another"] {
            assert_eq!(Destination::of(org, same), destination, "{same}");
        }
        for another in
            ["http://hooks.example.com/a", "https://hooks.example.com:8443/a", "https://example.com/a"]
        {
            assert_ne!(Destination::of(org, another), destination, "{another}");
        }
        assert_ne!(Destination::of(other, "https://hooks.example.com/a?b=c"), destination);
        assert_eq!(Destination::of(org, "not a URL"), Destination::of(org, "://"));
    }

    #[test]
    fn a_destination_is_written_as_16_hex_digits() {
        let destination = Destination::from(-2);
        assert_eq!(serde_json::to_string(&destination).unwrap(), r#""fffffffffffffffe""#);
        assert_eq!(serde_json::from_str::<Destination>(r#""fffffffffffffffe""#).unwrap(), destination);
        assert!(serde_json::from_str::<Destination>(r#""x""#).is_err());
    }
}

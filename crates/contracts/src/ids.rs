//! Ids: UUIDs with a type for each kind of object.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Timestamp;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Returns a new id (UUIDv7), which sorts by its creation time.
            pub fn new(now: Timestamp) -> Self {
                $name(uuid_v7(now))
            }

            /// Returns when the id was created, to the millisecond; `None` if it is no UUIDv7.
            pub fn created_at(self) -> Option<Timestamp> {
                let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
                let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
                Some(Timestamp::from_micros(micros + i64::from(nanos / 1_000)))
            }

            /// Returns a new id with the caller's random bits.
            pub fn with_random(now: Timestamp, random: u128) -> Self {
                let millis = now.as_micros().max(0).unsigned_abs() / 1_000;
                let [bytes @ .., _, _, _, _, _, _] = random.to_be_bytes();
                $name(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map($name)
            }
        }
    )*};
}

ids! {
    /// An organization: owner of runs, tokens and secrets.
    OrgId,
    /// A run, unique within its organization only. Chosen by the run engine.
    RunId,
    /// A delivery; also the `webhook-id` of all its attempts.
    DeliveryId,
    /// The record of one attempt.
    AttemptId,
    /// A signing secret.
    SecretId,
    /// An API token (its record; the token itself is never stored).
    TokenId,
    /// A claim of an attempt. A result is accepted only under the claim id of its attempt.
    ClaimId,
}

fn uuid_v7(now: Timestamp) -> Uuid {
    let micros = now.as_micros().max(0).unsigned_abs();
    let nanos = u32::try_from(micros % 1_000_000).unwrap_or(0) * 1_000;
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, micros / 1_000_000, nanos))
}

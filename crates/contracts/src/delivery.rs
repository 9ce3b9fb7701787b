//! Deliveries and their attempts (contract section 3).

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use strum::{Display, EnumString, IntoStaticStr};

use crate::{AttemptId, DeliveryId, RunId, SecretId, Timestamp};

/// A delivery's `status_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryStatus {
    /// New, or waiting for a retry.
    Pending,
    /// An attempt is claimed and may be on its way.
    Delivering,
    /// A receiver answered 2xx.
    Succeeded,
    /// Ended without a 2xx.
    Failed,
}

/// Why an attempt failed, or why a delivery was ended: `failure_reason_code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Display, EnumString, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FailureReason {
    /// Any complete response but 2xx.
    HttpError,
    /// The attempt's total budget ran out.
    Timeout,
    /// Connecting, writing or reading failed.
    ConnectionError,
    /// The host's name has no address.
    DnsError,
    /// No trusted TLS session came about.
    TlsError,
    /// Every address of the host is refused by the egress policy.
    BlockedAddress,
    /// The stored URL can't be called.
    InvalidUrl,
    /// The frozen signing secret can't be opened; nothing was sent.
    SigningUnavailable,
    /// The process died, or stalled beyond its lease, in mid-attempt.
    OutcomeUnknown,
    /// A redelivery with `?supersede=true` took its place. Ends the delivery.
    Superseded,
    /// The receiver answered 410 and `delivery.stop_on_gone` is set. Ends the delivery.
    Gone,
    /// The run's data was erased. Ends the delivery.
    Erased,
}

/// An attempt's number within its delivery, counted from 1.
pub type AttemptNumber = i32;

/// One try of a delivery. Keys in the contract's order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// The delivery it belongs to.
    pub delivery_id: DeliveryId,
    /// Counted from 1 without gaps.
    pub attempt_number: AttemptNumber,
    /// The HTTP status, or null when no complete response head came.
    pub status_code: Option<i32>,
    /// The first 8 KiB of the response body: lossy UTF-8, NUL removed.
    pub response_body: Option<String>,
    /// From sending to the end of the exchange, in milliseconds.
    pub response_time_ms: Option<i64>,
    /// Null after a 2xx, else `<reason_code>: sentence`.
    pub error_message: Option<String>,
    /// When the attempt was claimed.
    pub created_at: Timestamp,
}

/// The delivery object. Serializes with the contract's keys in the contract's order, every key always present.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Delivery {
    pub id: DeliveryId,
    pub run_id: RunId,
    pub callback_url: String,
    /// The frozen body as text; shown twice, as `payload_bytes` and parsed as `payload`.
    pub payload_bytes: String,
    pub signing_secret_id: Option<SecretId>,
    pub is_automatic: bool,
    pub status_code: DeliveryStatus,
    pub failure_reason_code: Option<FailureReason>,
    pub failure_detail: Option<String>,
    pub attempt_count: AttemptNumber,
    pub max_attempts: AttemptNumber,
    pub next_attempt_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    /// Ascending by number.
    pub attempts: Vec<Attempt>,
}

impl Serialize for Delivery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let payload: &RawValue =
            serde_json::from_str(&self.payload_bytes).map_err(serde::ser::Error::custom)?;
        let mut object = serializer.serialize_struct("Delivery", 17)?;
        object.serialize_field("id", &self.id)?;
        object.serialize_field("run_id", &self.run_id)?;
        object.serialize_field("callback_url", &self.callback_url)?;
        object.serialize_field("payload_bytes", &self.payload_bytes)?;
        object.serialize_field("payload", payload)?;
        object.serialize_field("signing_secret_id", &self.signing_secret_id)?;
        object.serialize_field("is_automatic", &self.is_automatic)?;
        object.serialize_field("status_code", &self.status_code)?;
        object.serialize_field("failure_reason_code", &self.failure_reason_code)?;
        object.serialize_field("failure_detail", &self.failure_detail)?;
        object.serialize_field("attempt_count", &self.attempt_count)?;
        object.serialize_field("max_attempts", &self.max_attempts)?;
        object.serialize_field("next_attempt_at", &self.next_attempt_at)?;
        object.serialize_field("created_at", &self.created_at)?;
        object.serialize_field("updated_at", &self.updated_at)?;
        object.serialize_field("completed_at", &self.completed_at)?;
        object.serialize_field("attempts", &self.attempts)?;
        object.end()
    }
}

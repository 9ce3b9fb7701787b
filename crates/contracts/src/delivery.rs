//! Deliveries and their attempts (contract section 3).

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{AttemptId, DeliveryId, RunId, SecretId, Timestamp, Timing};

/// A delivery's `status_code`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryStatus {
    /// New, or waiting for a retry.
    Pending,
    /// An attempt is claimed and may be in flight.
    Delivering,
    /// The receiver answered 2xx.
    Succeeded,
    /// Ended without a 2xx.
    Failed,
}

/// Why an attempt failed, or why a delivery was ended: `failure_reason_code`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FailureReason {
    /// A complete response other than 2xx.
    HttpError,
    /// The attempt's total timeout expired.
    Timeout,
    /// Connecting, writing or reading failed.
    ConnectionError,
    /// The host name has no address.
    DnsError,
    /// No trusted TLS session could be established.
    TlsError,
    /// The egress policy blocks every address of the host.
    BlockedAddress,
    /// The stored URL can't be called.
    InvalidUrl,
    /// The frozen signing secret can't be decrypted; nothing was sent.
    SigningUnavailable,
    /// The process died or stalled beyond its lease during the attempt.
    OutcomeUnknown,
    /// A redelivery with `?supersede=true` replaced it. Ends the delivery.
    Superseded,
    /// The receiver answered 410 and `delivery.stop_on_gone` is set. Ends the delivery.
    Gone,
    /// The run's data was erased. Ends the delivery.
    Erased,
    /// A client withdrew it. Ends the delivery.
    Withdrawn,
}

/// An attempt's number within its delivery, counted from 1.
pub type AttemptNumber = i32;

/// One attempt of a delivery. Keys are in the contract's order.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Attempt {
    /// The attempt's id.
    pub id: AttemptId,
    /// The delivery it belongs to.
    pub delivery_id: DeliveryId,
    /// The attempt's number, counted from 1 without gaps.
    #[schema(value_type = i32, minimum = 1)]
    pub attempt_number: AttemptNumber,
    /// The HTTP status, or null if no complete response head was received.
    #[schema(required)]
    pub status_code: Option<i32>,
    /// The first 8 KiB of the response body: lossy UTF-8, NUL removed.
    #[schema(required)]
    pub response_body: Option<String>,
    /// From sending to the complete response head, or to the failure, in milliseconds.
    #[schema(required)]
    pub response_time_ms: Option<i64>,
    /// Null after a 2xx, otherwise `<reason_code>: sentence`.
    #[schema(required)]
    pub error_message: Option<String>,
    /// When the attempt was claimed.
    pub created_at: Timestamp,
    /// Present only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// The delivery object. Serializes with all of the contract's keys in the contract's order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Delivery {
    pub id: DeliveryId,
    pub run_id: RunId,
    pub callback_url: String,
    /// The frozen body as text. Serialized twice: as `payload_bytes`, and parsed as `payload`.
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
    /// The attempts in ascending order of number.
    pub attempts: Vec<Attempt>,
}

impl Serialize for Delivery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Shown {
            id: self.id,
            run_id: self.run_id,
            callback_url: &self.callback_url,
            payload_bytes: &self.payload_bytes,
            payload: Parsed(&self.payload_bytes),
            signing_secret_id: self.signing_secret_id,
            is_automatic: self.is_automatic,
            status_code: self.status_code,
            failure_reason_code: self.failure_reason_code,
            failure_detail: self.failure_detail.as_deref(),
            attempt_count: self.attempt_count,
            max_attempts: self.max_attempts,
            next_attempt_at: self.next_attempt_at,
            created_at: self.created_at,
            updated_at: self.updated_at,
            completed_at: self.completed_at,
            attempts: &self.attempts,
        }
        .serialize(serializer)
    }
}

impl PartialSchema for Delivery {
    fn schema() -> RefOr<Schema> {
        Shown::schema()
    }
}

impl ToSchema for Delivery {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Shown::schemas(schemas);
    }
}

/// A JSON text, serialized as the value it contains. It is parsed only on serialization.
struct Parsed<'a>(&'a str);

impl Serialize for Parsed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parsed: &RawValue = serde_json::from_str(self.0).map_err(serde::ser::Error::custom)?;
        parsed.serialize(serializer)
    }
}

/// The delivery as serialized by the API, with keys in the contract's order.
#[derive(Serialize, ToSchema)]
#[schema(description = "The obligation to deliver one frozen payload to one URL, with its attempts.")]
struct Shown<'a> {
    /// The delivery's id, which is also the `webhook-id` of all its attempts.
    id: DeliveryId,
    run_id: RunId,
    callback_url: &'a str,
    /// The exact text of the request body.
    payload_bytes: &'a str,
    /// The request body, parsed.
    #[schema(value_type = Object)]
    payload: Parsed<'a>,
    /// The signing secret frozen with the delivery; null if the organization had none.
    #[schema(required)]
    signing_secret_id: Option<SecretId>,
    /// Whether the run's end created it, not a client.
    is_automatic: bool,
    status_code: DeliveryStatus,
    /// Why the latest attempt failed; null if no attempt failed or the delivery has succeeded.
    #[schema(required)]
    failure_reason_code: Option<FailureReason>,
    #[schema(required)]
    failure_detail: Option<&'a str>,
    /// The number of attempts started.
    #[schema(value_type = i32, minimum = 0)]
    attempt_count: AttemptNumber,
    #[schema(value_type = i32, minimum = 1)]
    max_attempts: AttemptNumber,
    /// Set while the delivery is pending.
    #[schema(required)]
    next_attempt_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Null until the delivery has ended.
    #[schema(required)]
    completed_at: Option<Timestamp>,
    /// The attempts in ascending order of number.
    attempts: &'a [Attempt],
}

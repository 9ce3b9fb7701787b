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
    /// An attempt is claimed and may be on its way.
    Delivering,
    /// A receiver answered 2xx.
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
    /// A client withdrew it. Ends the delivery.
    Withdrawn,
}

/// An attempt's number within its delivery, counted from 1.
pub type AttemptNumber = i32;

/// One try of a delivery. Keys in the contract's order.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Attempt {
    /// Its id.
    pub id: AttemptId,
    /// The delivery it belongs to.
    pub delivery_id: DeliveryId,
    /// Counted from 1 without gaps.
    #[schema(value_type = i32, minimum = 1)]
    pub attempt_number: AttemptNumber,
    /// The HTTP status, or null when no complete response head came.
    #[schema(required)]
    pub status_code: Option<i32>,
    /// The first 8 KiB of the response body: lossy UTF-8, NUL removed.
    #[schema(required)]
    pub response_body: Option<String>,
    /// From sending to the complete response head, or to the failure, in milliseconds.
    #[schema(required)]
    pub response_time_ms: Option<i64>,
    /// Null after a 2xx, else `<reason_code>: sentence`.
    #[schema(required)]
    pub error_message: Option<String>,
    /// When the attempt was claimed.
    pub created_at: Timestamp,
    /// Shown only when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
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

/// A text that is JSON, written as what it says. It is parsed only where it is written.
struct Parsed<'a>(&'a str);

impl Serialize for Parsed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let parsed: &RawValue = serde_json::from_str(self.0).map_err(serde::ser::Error::custom)?;
        parsed.serialize(serializer)
    }
}

/// The delivery as the API shows it, keys in the contract's order.
#[derive(Serialize, ToSchema)]
#[schema(description = "The obligation to bring one frozen payload to one URL, with its attempts.")]
struct Shown<'a> {
    /// Also the `webhook-id` of all its attempts.
    id: DeliveryId,
    run_id: RunId,
    callback_url: &'a str,
    /// The request body's exact text.
    payload_bytes: &'a str,
    /// The same, parsed.
    #[schema(value_type = Object)]
    payload: Parsed<'a>,
    /// The secret it was frozen with; null when the organization had none.
    #[schema(required)]
    signing_secret_id: Option<SecretId>,
    /// Whether the run's end called for it, and not a client.
    is_automatic: bool,
    status_code: DeliveryStatus,
    /// Why the latest attempt failed; null if none did or once succeeded.
    #[schema(required)]
    failure_reason_code: Option<FailureReason>,
    #[schema(required)]
    failure_detail: Option<&'a str>,
    /// Attempts begun.
    #[schema(value_type = i32, minimum = 0)]
    attempt_count: AttemptNumber,
    #[schema(value_type = i32, minimum = 1)]
    max_attempts: AttemptNumber,
    /// Set while pending.
    #[schema(required)]
    next_attempt_at: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// Null until it has ended.
    #[schema(required)]
    completed_at: Option<Timestamp>,
    /// Ascending by number.
    attempts: &'a [Attempt],
}

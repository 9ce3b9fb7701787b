//! The error envelope and its table of codes (contract section 3, "Errors").

use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::{DeliveryId, Timestamp};

/// Every error `code` of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, IntoStaticStr, VariantArray, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum ErrorCode {
    Unauthorized,
    PermissionDenied,
    OrganizationMembershipRequired,
    RunNotFound,
    CallbackDeliveryNotFound,
    CallbackSecretNotFound,
    NotFound,
    MethodNotAllowed,
    Conflict,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationError,
    RateLimited,
    InternalError,
    ServiceUnavailable,
}

impl ErrorCode {
    /// Returns the HTTP status of the response.
    pub fn status(self) -> u16 {
        match self {
            ErrorCode::Unauthorized => 401,
            ErrorCode::PermissionDenied | ErrorCode::OrganizationMembershipRequired => 403,
            ErrorCode::RunNotFound
            | ErrorCode::CallbackDeliveryNotFound
            | ErrorCode::CallbackSecretNotFound
            | ErrorCode::NotFound => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::Conflict => 409,
            ErrorCode::PayloadTooLarge => 413,
            ErrorCode::UnsupportedMediaType => 415,
            ErrorCode::ValidationError => 422,
            ErrorCode::RateLimited => 429,
            ErrorCode::InternalError => 500,
            ErrorCode::ServiceUnavailable => 503,
        }
    }

    /// Returns the default message.
    pub fn message(self) -> &'static str {
        match self {
            ErrorCode::Unauthorized => "a valid bearer token is required",
            ErrorCode::PermissionDenied => "the token lacks the scope this call needs",
            ErrorCode::OrganizationMembershipRequired => "the token does not belong to this organization",
            ErrorCode::RunNotFound => "run not found",
            ErrorCode::CallbackDeliveryNotFound => "callback delivery not found",
            ErrorCode::CallbackSecretNotFound => "callback secret not found",
            ErrorCode::NotFound => "no such path",
            ErrorCode::MethodNotAllowed => "this path does not take that method",
            ErrorCode::Conflict => "the request conflicts with the current state",
            ErrorCode::PayloadTooLarge => "the request body is too large",
            ErrorCode::UnsupportedMediaType => "the request body must be application/json",
            ErrorCode::ValidationError => "the request is not valid",
            ErrorCode::RateLimited => "too many requests",
            ErrorCode::InternalError => "internal error",
            ErrorCode::ServiceUnavailable => "the service is temporarily unavailable",
        }
    }
}

/// The body of every non-2xx response.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error's code.
    pub code: ErrorCode,
    /// A sentence for people.
    pub message: String,
    /// The errors in the request with their locations, or null.
    #[schema(required)]
    pub errors: Option<Vec<FieldError>>,
}

/// One step of the path to an error: a key or an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
#[allow(missing_docs)]
pub enum Loc {
    Key(String),
    Index(usize),
}

impl From<&str> for Loc {
    fn from(key: &str) -> Loc {
        Loc::Key(key.to_owned())
    }
}

/// One error in a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldError {
    /// The location, such as `["body", "status_code"]` or `["path", "run_id"]`.
    pub loc: Vec<Loc>,
    /// A sentence for people.
    pub msg: String,
    /// A stable code for programs.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// On `conflict`: the delivery in flight and its next attempt.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlight>,
}

/// The schema of [`FieldError`], whose last member is flattened if present.
#[derive(ToSchema)]
#[schema(as = FieldError, description = "One error in a request.")]
#[expect(dead_code, reason = "only described")]
struct Shown {
    /// The location, such as `["body", "status_code"]` or `["path", "run_id"]`.
    loc: Vec<Loc>,
    /// A sentence for people.
    msg: String,
    /// A stable code for programs.
    r#type: String,
    /// On `conflict`: the delivery in flight.
    delivery_id: Option<DeliveryId>,
    /// On `conflict`: the time of that delivery's next attempt.
    next_attempt_at: Option<Timestamp>,
}

impl PartialSchema for FieldError {
    fn schema() -> RefOr<Schema> {
        Shown::schema()
    }
}

impl ToSchema for FieldError {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Shown::schemas(schemas);
    }
}

/// The delivery in flight that a `conflict` reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct InFlight {
    pub delivery_id: DeliveryId,
    pub next_attempt_at: Option<Timestamp>,
}

impl FieldError {
    /// Returns an error at `loc`.
    pub fn new(loc: &[&str], kind: &'static str, msg: impl Into<String>) -> FieldError {
        let loc = loc.iter().map(|step| Loc::from(*step)).collect();
        FieldError { loc, msg: msg.into(), kind, in_flight: None }
    }
}

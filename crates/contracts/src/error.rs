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
    /// The table: its HTTP status, and its message when there is nothing more specific to say.
    const fn row(self) -> (u16, &'static str) {
        match self {
            ErrorCode::Unauthorized => (401, "a valid bearer token is required"),
            ErrorCode::PermissionDenied => (403, "the token lacks the scope this call needs"),
            ErrorCode::OrganizationMembershipRequired => {
                (403, "the token does not belong to this organization")
            }
            ErrorCode::RunNotFound => (404, "run not found"),
            ErrorCode::CallbackDeliveryNotFound => (404, "callback delivery not found"),
            ErrorCode::CallbackSecretNotFound => (404, "callback secret not found"),
            ErrorCode::NotFound => (404, "no such path"),
            ErrorCode::MethodNotAllowed => (405, "this path does not take that method"),
            ErrorCode::Conflict => (409, "the request conflicts with the current state"),
            ErrorCode::PayloadTooLarge => (413, "the request body is too large"),
            ErrorCode::UnsupportedMediaType => (415, "the request body must be application/json"),
            ErrorCode::ValidationError => (422, "the request is not valid"),
            ErrorCode::RateLimited => (429, "too many requests"),
            ErrorCode::InternalError => (500, "internal error"),
            ErrorCode::ServiceUnavailable => (503, "the service is temporarily unavailable"),
        }
    }

    /// Returns the HTTP status.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// Returns the general message.
    pub fn message(self) -> &'static str {
        self.row().1
    }
}

/// Every `type` of a [`FieldError`]: stable words for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[allow(missing_docs)]
pub enum ErrorType {
    // A body, or JSON in it.
    BodyIncomplete,
    JsonInvalid,
    ObjectType,
    StringType,
    IntType,
    NullCharacter,
    StringTooLong,
    LiteralError,
    Missing,
    // Values, in a body, a query or a path.
    BoolParsing,
    IntParsing,
    UuidParsing,
    DatetimeInvalid,
    Enum,
    GreaterThanEqual,
    LessThanEqual,
    Duplicate,
    ExtraForbidden,
    QueryMalformed,
    CursorInvalid,
    HostInvalid,
    IdempotencyKeyInvalid,
    UrlInvalid,
    UrlBlocked,
    // The state of a run, a delivery or a secret.
    RunNotTerminal,
    CallbackUrlMissing,
    Conflict,
    SecretDisabled,
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
    pub kind: ErrorType,
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
    pub fn new(loc: &[&str], kind: ErrorType, msg: impl Into<String>) -> FieldError {
        let loc = loc.iter().map(|step| Loc::from(*step)).collect();
        FieldError { loc, msg: msg.into(), kind, in_flight: None }
    }
}

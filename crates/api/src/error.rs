//! Errors of the API and their envelope (contract section 3, "Errors").

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use contracts::{ErrorBody, ErrorCode, FieldError};
use store::StoreError;
use thiserror::Error;

use crate::limits::COPIES;

/// `Retry-After` in seconds while the database is unavailable: about the time of a connection failover, and
/// short enough that clients do not wait long without need.
const RETRY_AFTER: &str = "2";

/// Why a call is not answered with a 2xx. `Display` is for logs and may name internals; clients only see
/// [`ErrorBody`].
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// An error without details beyond its code.
    #[error("{}", .0.message())]
    Plain(ErrorCode),
    /// Parts of the request are invalid.
    #[error("{}", ErrorCode::ValidationError.message())]
    Invalid(Vec<FieldError>),
    /// The path supports only these methods, separated by commas.
    #[error("{}", ErrorCode::MethodNotAllowed.message())]
    MethodNotAllowed(String),
    /// A limit is exceeded. A retry may succeed after this time.
    #[error("{}", ErrorCode::RateLimited.message())]
    RateLimited(Duration),
    /// The current state forbids the call. Clients see the reason.
    #[error("{0}")]
    Conflict(String),
    /// A resource that the process needs is unavailable. Anyone may see the reason.
    #[error("{0}")]
    NotReady(String),
    /// The response is large. The call can be repeated once this many bytes of memory are reserved.
    #[error("{0} bytes of memory are needed")]
    NeedsRoom(usize),
    /// The transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The response can't be serialized: the database holds a payload that isn't JSON.
    #[error("the response can't be serialized: {0}")]
    Unwritable(#[from] serde_json::Error),
    /// A file of the documentation page can't be served.
    #[error("documentation page: {0}")]
    Page(String),
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> ApiError {
        ApiError::Invalid(vec![error])
    }
}

impl From<Vec<FieldError>> for ApiError {
    fn from(errors: Vec<FieldError>) -> ApiError {
        ApiError::Invalid(errors)
    }
}

impl From<ErrorCode> for ApiError {
    fn from(code: ErrorCode) -> ApiError {
        ApiError::Plain(code)
    }
}

impl ApiError {
    /// Bytes of memory to reserve before the call is repeated, if it failed for lack of memory.
    pub(crate) fn needed_room(&self) -> Option<usize> {
        match self {
            ApiError::NeedsRoom(bytes) => Some(*bytes),
            ApiError::Store(StoreError::TooLarge(bytes)) => Some(bytes.saturating_mul(COPIES)),
            _ => None,
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            ApiError::Plain(code) => *code,
            ApiError::Invalid(_) => ErrorCode::ValidationError,
            ApiError::MethodNotAllowed(_) => ErrorCode::MethodNotAllowed,
            ApiError::RateLimited(_) => ErrorCode::RateLimited,
            ApiError::Conflict(_) => ErrorCode::Conflict,
            ApiError::NotReady(_) | ApiError::NeedsRoom(_) => ErrorCode::ServiceUnavailable,
            ApiError::Store(error) if error.may_pass() => ErrorCode::ServiceUnavailable,
            ApiError::Store(_) | ApiError::Unwritable(_) | ApiError::Page(_) => ErrorCode::InternalError,
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        let code = self.code();
        match code {
            ErrorCode::Unauthorized => {
                response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
            }
            ErrorCode::ServiceUnavailable => {
                response.insert_header((header::RETRY_AFTER, RETRY_AFTER));
            }
            _ => {}
        }
        let (mut message, mut errors) = (code.message(), None);
        match self {
            ApiError::MethodNotAllowed(allow) => {
                response.insert_header((header::ALLOW, allow.as_str()));
            }
            ApiError::RateLimited(wait) => {
                // Rounded up to whole seconds, so that a client that waits is not refused again.
                let seconds = (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1);
                response.insert_header((header::RETRY_AFTER, seconds));
            }
            ApiError::Conflict(reason) | ApiError::NotReady(reason) => message = reason,
            ApiError::Invalid(invalid) => errors = Some(invalid.clone()),
            _ => {}
        }
        response.json(ErrorBody { code, message: message.to_owned(), errors })
    }
}

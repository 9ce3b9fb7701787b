//! From what went wrong to the error envelope (contract section 3, "Errors").

use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use contracts::{ErrorBody, ErrorCode, FieldError};
use store::StoreError;
use thiserror::Error;

use crate::room::COPIES;

/// Seconds after which a client may ask again when the database is away: about what a failover of a connection
/// takes, and short enough that nobody waits for long without need.
const RETRY_AFTER: &str = "2";

/// Why a call is not answered with a 2xx. `Display` is for our logs and may name internals; the client reads
/// [`ErrorBody`] alone.
#[derive(Debug, Error)]
pub(crate) enum ApiError {
    /// The code says it all.
    #[error("{}", .0.message())]
    Plain(ErrorCode),
    /// Something in the request is wrong.
    #[error("{}", ErrorCode::ValidationError.message())]
    Invalid(Vec<FieldError>),
    /// The path knows only the methods named, separated by commas.
    #[error("{}", ErrorCode::MethodNotAllowed.message())]
    MethodNotAllowed(String),
    /// More than the limit; there is room again after that time.
    #[error("{}", ErrorCode::RateLimited.message())]
    RateLimited(Duration),
    /// The current state forbids it, for a reason the client may read.
    #[error("{0}")]
    Conflict(String),
    /// What the process needs is not there, for reasons anybody may read.
    #[error("{0}")]
    NotReady(String),
    /// What would be answered is large: with room for so many bytes of memory the call can be made again.
    #[error("{0} bytes of memory are needed")]
    NeedsRoom(usize),
    /// The transaction failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What we would answer is no JSON: the database holds a payload that isn't.
    #[error("an answer can't be written: {0}")]
    Unwritable(#[from] serde_json::Error),
    /// A file of the documentation's page can't be given.
    #[error("the documentation's page: {0}")]
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
    /// How many bytes of memory would be needed, if that is why.
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
                // Whole seconds, and never so few that the client would be refused again.
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

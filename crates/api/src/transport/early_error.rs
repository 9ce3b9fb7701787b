//! Error responses to input that never became a request: a malformed, too long or too slow head, or one
//! connection too many. actix would respond with an empty body and without calling the application. Clients
//! get the error envelope and a request ID instead.

use contracts::{ErrorBody, ErrorCode};
use tracing::info;
use uuid::Uuid;

/// A response after which the connection is closed.
pub(crate) struct EarlyError {
    bytes: Vec<u8>,
    written: usize,
}

impl EarlyError {
    /// Returns the replacement for a response from actix. `None` if `answer` does not begin a response.
    pub(crate) fn instead_of(answer: &[u8]) -> Option<EarlyError> {
        let rest = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "))?;
        let status = std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok()?;
        Some(EarlyError::new(status))
    }

    pub(crate) fn new(status: u16) -> EarlyError {
        // Each code of the contract has a status of its own. These are the closest codes.
        let (reason, code, message) = match status {
            408 => {
                ("Request Timeout", ErrorCode::ValidationError, "the request's head did not arrive in time")
            }
            431 => (
                "Request Header Fields Too Large",
                ErrorCode::PayloadTooLarge,
                "the request's head is too large",
            ),
            429 => ("Too Many Requests", ErrorCode::RateLimited, "too many connections from this address"),
            500.. => ("Internal Server Error", ErrorCode::InternalError, ErrorCode::InternalError.message()),
            _ => ("Bad Request", ErrorCode::ValidationError, "this is not an HTTP request"),
        };
        let request_id = Uuid::new_v4();
        info!(status, %request_id, "refused input that is not a request");
        let body = ErrorBody { code, message: message.to_owned(), errors: None };
        let body = serde_json::to_string(&body).unwrap_or_default(); // can't fail: text only
        // As contract section 3, "Errors", promises. A slot is free once another connection closes.
        let retry_after = if status == 429 { "retry-after: 1\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\ncontent-length: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
            {retry_after}x-request-id: {request_id}\r\n\r\n",
            body.len()
        );
        EarlyError { bytes: (head + &body).into_bytes(), written: 0 }
    }

    /// The bytes still to be written.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    pub(crate) fn written(&mut self, count: usize) {
        self.written += count;
    }
}

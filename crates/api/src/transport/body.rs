//! Request bodies: size, timeout, content type, and parsing of small objects.

use std::time::Duration;

use actix_web::http::header;
use actix_web::web::{Bytes, Payload};
use actix_web::{HttpMessage, HttpRequest};
use contracts::{BodyReader, ErrorCode, ErrorType, FieldError};

use crate::error::ApiError;

/// Reads a body of at most `limit` bytes within `time`. If `Content-Length` exceeds the limit, refuses the
/// body without reading it.
pub(crate) async fn read(
    request: &HttpRequest,
    payload: Payload,
    limit: usize,
    time: Duration,
) -> Result<Bytes, ApiError> {
    if announced(request).is_some_and(|length| length > limit) {
        return Err(ErrorCode::PayloadTooLarge.into());
    }
    match tokio::time::timeout(time, payload.to_bytes_limited(limit)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Err(_too_large)) => Err(ErrorCode::PayloadTooLarge.into()),
        Ok(Ok(Err(_))) | Err(_) => {
            Err(FieldError::new(&["body"], ErrorType::BodyIncomplete, "the body did not arrive in full")
                .into())
        }
    }
}

/// Returns how many bytes to expect: the `Content-Length`, or `limit` for a chunked body. Zero if the body is
/// over the limit and will not be read.
pub(crate) fn expected(request: &HttpRequest, limit: usize) -> usize {
    match announced(request) {
        Some(length) if length <= limit => length,
        None if request.chunked().unwrap_or(false) => limit,
        _ => 0,
    }
}

fn announced(request: &HttpRequest) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Refuses a content type other than `application/json`. Parameters are ignored.
pub(crate) fn require_json(request: &HttpRequest) -> Result<(), ApiError> {
    match request.mime_type() {
        Ok(Some(mime)) if mime.essence_str() == "application/json" => Ok(()),
        _ => Err(ErrorCode::UnsupportedMediaType.into()),
    }
}

/// Reads the members of an object. A body of only JSON whitespace is `{}`.
pub(crate) fn members(body: &[u8]) -> Result<BodyReader, ApiError> {
    if body.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Ok(BodyReader::default());
    }
    Ok(BodyReader::parse(body)?)
}

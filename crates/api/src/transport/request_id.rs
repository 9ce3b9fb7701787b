//! Request IDs (contract section 3): taken from the client or generated, available to handlers and logs, and
//! returned in every response.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest};
use uuid::Uuid;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const MAX_LEN: usize = 128;

#[derive(Clone)]
struct RequestId(String);

/// Returns the ID of a request, which [`layer`] has set.
pub(crate) fn of(request: &HttpRequest) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

pub(crate) async fn layer(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id = accepted(request.headers()).unwrap_or_else(|| Uuid::new_v4().to_string());
    let echo = HeaderValue::from_str(&id).map_err(actix_web::error::HttpError::from)?;
    request.extensions_mut().insert(RequestId(id));
    let mut response = next.call(request).await?;
    response.headers_mut().insert(HEADER, echo);
    Ok(response)
}

fn accepted(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(HEADER)?.to_str().ok()?;
    let fits = (1..=MAX_LEN).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    fits.then(|| id.to_owned())
}

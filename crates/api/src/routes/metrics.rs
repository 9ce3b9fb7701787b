//! Metrics of the process.

use actix_web::http::header::{ACCEPT, CONTENT_TYPE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use ops::Metrics;

use crate::call::CallResult;
use crate::error::ApiError;

/// `GET /metrics`: shows all metrics, for Prometheus. Ignores query parameters, which some collectors add.
pub(crate) async fn show(metrics: Data<Metrics>, request: HttpRequest) -> CallResult {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let (text, content_type) =
        metrics.registry.scrape(accept).map_err(|error| ApiError::Page(error.to_string()))?;
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, content_type)).body(text))
}

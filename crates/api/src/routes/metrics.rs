//! Metrics of the process, and what its number of replicas should follow.

use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CONTENT_TYPE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use ops::Metrics;
use serde_json::json;

use crate::call::{self, CallResult};
use crate::error::ApiError;

/// `GET /metrics`: shows all metrics, for Prometheus. Ignores query parameters, which some collectors add.
pub(crate) async fn show(metrics: Data<Metrics>, request: HttpRequest) -> CallResult {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    let (text, content_type) =
        metrics.registry.scrape(accept).map_err(|error| ApiError::Page(error.to_string()))?;
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, content_type)).body(text))
}

/// `GET /scaling`: answers how many deliveries are due or in flight in the whole installation, as last sampled
/// by this dispatcher. Unavailable while that is not known, so that an autoscaler keeps what it has.
pub(crate) async fn scaling(metrics: Data<Metrics>) -> CallResult {
    match metrics.work.value([]) {
        Some(work) => call::json(StatusCode::OK, &json!({"work": work as u64})),
        None => Err(ApiError::NotReady("the work was not sampled yet, or this is no dispatcher".into())),
    }
}

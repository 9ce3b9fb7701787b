//! Health and readiness of the process.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::call::{self, CallResult};
use crate::error::ApiError;
use crate::query::params::no_query;
use ops::Readiness;

/// The process accepts requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// `GET /v1/health`: reports that this process accepts requests. Does not check its dependencies.
pub(crate) async fn show(request: HttpRequest) -> CallResult {
    no_query(&request)?;
    call::json(StatusCode::OK, &Health { status: "ok" })
}

/// `GET /health/ready`: reports whether this process is ready to work, or why not.
pub(crate) async fn show_ready(readiness: Data<Readiness>, request: HttpRequest) -> CallResult {
    no_query(&request)?;
    let reasons = readiness.reasons();
    if !reasons.is_empty() {
        return Err(ApiError::NotReady(reasons.join("; ")));
    }
    call::json(StatusCode::OK, &json!({"status": "ready"}))
}

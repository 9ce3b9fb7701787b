//! Whether the process answers, and whether it has what it needs.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::Readiness;
use crate::call::{self, Answer};
use crate::error::ApiError;
use crate::params::no_query;

/// That the process takes requests.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// `GET /v1/health`: that this process takes requests, and nothing about what it needs to serve them.
pub(crate) async fn show(request: HttpRequest) -> Answer {
    no_query(&request)?;
    call::json(StatusCode::OK, &Health { status: "ok" })
}

/// `GET /health/ready`: that this process has what it needs to do its work, or why not.
pub(crate) async fn show_ready(readiness: Data<Readiness>, request: HttpRequest) -> Answer {
    no_query(&request)?;
    let reasons = readiness.reasons();
    if !reasons.is_empty() {
        return Err(ApiError::NotReady(reasons.join("; ")));
    }
    call::json(StatusCode::OK, &json!({"status": "ready"}))
}

//! Whether the process answers.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use serde_json::json;

use crate::call::{self, Answer};
use crate::params::no_query;

/// `GET /v1/health`: that this process takes requests, and nothing about what it needs to serve them.
pub(crate) async fn show(request: HttpRequest) -> Answer {
    no_query(&request)?;
    call::json(StatusCode::OK, &json!({"status": "ok"}))
}

//! Whether the process answers.

use actix_web::HttpRequest;
use actix_web::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::call::{self, Answer};
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

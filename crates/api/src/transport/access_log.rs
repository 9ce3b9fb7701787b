//! Access log: one line, one count and, if it is traced, one span per request, and the cause of every 5xx.
//! Never logs a token, a query or a body.

use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage};
use contracts::OrgId;
use tracing::{error, field, info};

use crate::context::Api;
use crate::transport::client::client;
use crate::transport::{request_id, trace};

pub(crate) async fn layer(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let response = next.call(request).await?;
    let request = response.request();
    let request_id = request_id::of(request);
    let status = response.status();
    let (route, took) = (request.match_pattern(), started.elapsed());
    let route = route.as_deref().unwrap_or("none");
    let span = trace::of(request);
    let api = request.app_data::<Data<Api>>();
    if let Some(api) = api {
        api.metrics.request(route, request.method().as_str(), status.as_u16(), took);
    }
    info!(
        method = %request.method(),
        // The pattern, not the path: few distinct values, none chosen by the client.
        route,
        status = status.as_u16(),
        duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        request_id,
        client = api.map(|api| field::display(client(request, &api.trusted_proxies))),
        org_id = request.extensions().get::<OrgId>().map(field::display), // absent until a token was accepted
        trace_id = span.trace_id(),
        "request"
    );
    if status.is_server_error() {
        error!(request_id, cause = response.response().error().map(field::display), "request failed");
    }
    trace::end(span, request, route, status);
    Ok(response)
}

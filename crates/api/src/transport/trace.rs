//! The span of a request. It begins once the request's token is accepted; the access log ends it.

use actix_web::http::StatusCode;
use actix_web::{HttpMessage, HttpRequest};
use contracts::{OrgId, Traceparent};
use ops::Tracer;
use ops::traces::{Follows, Span, SpanKind};

/// Begins the span of `request`, and returns the context that the request passes on to what it causes.
pub(crate) fn begin(tracer: &Tracer, request: &HttpRequest) -> Option<Traceparent> {
    let follows = caller(request).map_or(Follows::Nothing, Follows::Parent);
    // Renamed at its end.
    let span = tracer.span("request", SpanKind::Server, follows);
    let context = span.traceparent();
    request.extensions_mut().insert(span);
    context
}

/// Returns the caller's `traceparent`. One that is malformed or repeated is ignored (W3C Trace Context).
fn caller(request: &HttpRequest) -> Option<Traceparent> {
    let mut values = request.headers().get_all("traceparent");
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

/// Takes the span that `begin` has left with the request. One without a valid token has none.
pub(crate) fn of(request: &HttpRequest) -> Span {
    request.extensions_mut().remove().unwrap_or_default()
}

/// Ends the span of a request that is answered with `status`.
pub(crate) fn end(mut span: Span, request: &HttpRequest, route: &str, status: StatusCode) {
    if !span.is_recorded() {
        return;
    }
    span.rename(format!("{} {route}", request.method()));
    span.set("http.request.method", request.method().to_string());
    span.set("http.route", route.to_owned());
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.set("url.scheme", request.connection_info().scheme().to_owned());
    span.set_some("redial.org_id", request.extensions().get::<OrgId>().map(ToString::to_string));
    if status.is_server_error() {
        span.fail(status.as_str().to_owned());
    }
}

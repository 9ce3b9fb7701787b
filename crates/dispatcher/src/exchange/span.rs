//! The span of an attempt, by OpenTelemetry's conventions for HTTP clients. Never has the URL's path or query,
//! which may be secret.

use egress::TargetUrl;
use engine::{Claimed, HeldAttempt, Measured, Outcome};
use ops::Tracer;
use ops::traces::{Follows, Span, SpanKind};

/// Begins the span of an attempt. The first attempt continues the trace of the delivery's doorbell or
/// request; a later one begins a trace with a link to it.
pub(crate) fn begin(tracer: &Tracer, claimed: &Claimed) -> Span {
    let HeldAttempt { attempt, request, .. } = &claimed.held;
    let Some(context) = request.traceparent else { return Span::default() };
    let follows = if *attempt == 1 { Follows::Parent(context) } else { Follows::Link(context) };
    tracer.span("POST", SpanKind::Client, follows)
}

/// Ends the span of an attempt.
pub(crate) fn end(mut span: Span, claimed: &Claimed, outcome: &Outcome, measured: &Measured) {
    if !span.is_recorded() {
        return;
    }
    let held = &claimed.held;
    span.set("http.request.method", "POST");
    if held.attempt > 1 {
        span.set("http.request.resend_count", i64::from(held.attempt - 1));
    }
    if let Ok(target) = TargetUrl::parse(&claimed.callback_url) {
        span.set("server.address", target.host_str().to_owned());
        span.set("server.port", i64::from(target.port()));
    }
    span.set_some("network.peer.address", measured.timing.remote_address.clone());
    span.set("redial.attempt", i64::from(held.attempt));
    span.set("redial.delivery_id", held.delivery_id.to_string());
    span.set("redial.org_id", held.org_id.to_string());
    span.set("redial.run_id", held.run_id.to_string());
    match outcome {
        Outcome::Answered(response) => {
            span.set("http.response.status_code", i64::from(response.status));
            if !(200..300).contains(&response.status) {
                span.fail(response.status.to_string());
            }
        }
        Outcome::Failed(failure) => span.fail(<&'static str>::from(failure.reason)),
        Outcome::NotSent(_) => span.fail("not_sent"),
    }
}

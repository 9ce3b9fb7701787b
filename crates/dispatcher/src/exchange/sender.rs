//! One HTTP exchange within `delivery.timeout`: sign, POST, read the start of the response (contract section 2).

use std::sync::Arc;
use std::time::Duration;

use contracts::{FailureReason, Signing, Timing};
use egress::{Policy, TargetUrl};
use engine::{Claimed, LocalFailure, Outcome, Response, SendWindow};
use reqwest::Body;
use reqwest::header::RETRY_AFTER;
use store::Clock;
use tokio::time::{Instant, timeout_at};

use crate::dns::resolver::Resolver;
use crate::exchange::client::Clients;
use crate::exchange::failure::{failed, timed_out, was_closed};
use crate::exchange::headers::{RequestIds, headers};
use crate::exchange::request_body::TimelyBody;
use crate::exchange::response::{HEAD_TOO_LARGE, MAX_HEAD, content_type, head_size, kept_headers};
use crate::exchange::response_body;
use crate::exchange::trace::Trace;
use crate::settings::{DispatcherError, Settings};

/// Sends the requests of attempts.
pub(crate) struct Sender {
    clients: Clients,
    policy: Arc<Policy>,
    timeout: Duration,
    body_timeout: Duration,
    send_traceparent: bool,
    clock: Clock,
}

/// A response body longer than this is not read to its end, so its connection can't be reused. In bytes.
const BODY_READ: usize = 64 * 1024;

impl Sender {
    pub(crate) fn new(settings: &Settings, policy: Policy, clock: Clock) -> Result<Sender, DispatcherError> {
        let policy = Arc::new(policy);
        let resolver =
            Resolver::new(policy.clone(), settings.connect_timeout, settings.limits.max_in_flight)?;
        let clients = Clients::new(settings, resolver)?;
        Ok(Sender::with(clients, settings, policy, clock))
    }

    fn with(clients: Clients, settings: &Settings, policy: Arc<Policy>, clock: Clock) -> Sender {
        let Settings { limits, body_timeout, send_traceparent, .. } = settings;
        let (timeout, body_timeout, send_traceparent) = (limits.timeout, *body_timeout, *send_traceparent);
        Sender { clients, policy, timeout, body_timeout, send_traceparent, clock }
    }

    /// Sends one attempt, if it can begin before `send_before` on the clock's monotonic time. The `Timing` also holds the `Content-Type` and the recorded headers of
    /// the response.
    pub(crate) async fn send(
        &self,
        claimed: &Claimed,
        signing: Option<&Signing>,
        send_before: Duration,
        mut ids: RequestIds,
        trace: &Arc<Trace>,
    ) -> (Outcome, Timing) {
        let target = match check_target(&claimed.callback_url, &self.policy) {
            Ok(target) => target,
            Err(outcome) => return (outcome, Timing::default()),
        };
        let Some(window) = SendWindow::begin(self.clock.monotonic(), send_before, self.timeout) else {
            return (Outcome::NotSent(LocalFailure::LeaseTooShort), Timing::default());
        };
        if !self.send_traceparent {
            ids.traceparent = None;
        }
        let deadline = Instant::now() + self.timeout;
        let origin = target.origin();
        let body = TimelyBody::new(claimed.payload.clone(), self.clock.clone(), window, trace.clone());
        let request = self
            .clients
            .get(&origin)
            .post(target.url().clone())
            .headers(headers(claimed, signing, self.clock.now(), ids))
            .body(Body::wrap(body));
        let response = match timeout_at(deadline, trace.measure(request.send())).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let outcome = failed(&error, &target, trace);
                if outcome == Outcome::NotSent(LocalFailure::NoSocket) {
                    self.clients.close_idle();
                }
                if trace.is_on_reused_connection() && was_closed(&error) {
                    self.clients.learn_short_keep_alive(&origin);
                }
                return (outcome, trace.timing());
            }
            Err(_) => return (timed_out(self.timeout, trace), trace.timing()),
        };
        trace.answered(response.remote_addr());
        self.clients.learn_keep_alive(&origin, response.headers());
        self.read(response, deadline, trace).await
    }

    /// Reads a response whose head is complete. The head decides the outcome; the body is only recorded, as
    /// far as it arrives within `body_timeout`.
    async fn read(
        &self,
        mut response: reqwest::Response,
        deadline: Instant,
        trace: &Trace,
    ) -> (Outcome, Timing) {
        if head_size(response.headers()) > MAX_HEAD {
            return (Outcome::failed(FailureReason::ConnectionError, HEAD_TOO_LARGE), trace.timing());
        }
        let read_before = deadline.min(Instant::now() + self.body_timeout);
        let mut body = Vec::new();
        while body.len() <= BODY_READ
            && let Ok(Ok(Some(chunk))) = timeout_at(read_before, response.chunk()).await
        {
            body.extend_from_slice(&chunk);
        }
        trace.body_ended();
        let headers = response.headers();
        let timing = Timing {
            content_type: content_type(headers),
            headers: Some(kept_headers(headers)),
            ..trace.timing()
        };
        let retry_after = headers.get_all(RETRY_AFTER).iter();
        let retry_after =
            retry_after.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let status = response.status().as_u16();
        let body = response_body::text(headers, &body);
        (Outcome::Answered(Response { status, body, retry_after }), timing)
    }
}

/// Checks the URL's form and the egress policy; the error is the outcome to record.
fn check_target(callback_url: &str, policy: &Policy) -> Result<TargetUrl, Outcome> {
    let target = TargetUrl::parse(callback_url)
        .map_err(|error| Outcome::failed(FailureReason::InvalidUrl, error.to_string()))?;
    match policy.judge_url(&target) {
        Ok(()) => Ok(target),
        Err(refused) => Err(Outcome::failed(FailureReason::BlockedAddress, refused.to_string())),
    }
}

#[cfg(test)]
mod tests;

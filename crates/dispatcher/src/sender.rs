//! One HTTP exchange: sign, POST, read the start of the answer, all under one budget (contract section 2).

use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use contracts::{FailureReason, SigningSecret, Timestamp, sign};
use egress::{Policy, TargetUrl};
use engine::{BODY_KEPT, Claimed, LocalFailure, Outcome, Response, SendWindow, kept_body};
use http_body::{Frame, SizeHint};
use reqwest::Body;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use store::Clock;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};
use url::Host;
use uuid::Uuid;

use crate::client::Client;
use crate::resolver::{ResolveError, Resolver};
use crate::shortage::{has_route, shortage};
use crate::{DispatcherError, Settings};

/// Sends attempts. One client with one pool of connections for all of them.
pub(crate) struct Sender {
    client: Client,
    policy: Arc<Policy>,
    timeout: Duration,
    clock: Clock,
}

/// A body longer than this is not read to its end, which costs its connection.
const BODY_READ: usize = 64 * 1024;

const RUNFLOW_SIGNATURE: HeaderName = HeaderName::from_static("runflow-signature");
const RUNFLOW_REQUEST_ID: HeaderName = HeaderName::from_static("runflow-request-id");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const REDIAL_ATTEMPT: HeaderName = HeaderName::from_static("redial-attempt");

impl Sender {
    pub(crate) fn new(settings: &Settings, policy: Policy, clock: Clock) -> Result<Sender, DispatcherError> {
        let policy = Arc::new(policy);
        let resolver = Resolver::new(policy.clone(), settings.connect_timeout)?;
        let client = Client::new(settings, resolver)?;
        Ok(Sender { client, policy, timeout: settings.limits.timeout, clock })
    }

    /// Sends one attempt, if its budget allows that before `send_before` on the clock's monotonic time. `request_id`
    /// is what the receiver sees as `Runflow-Request-Id`.
    pub(crate) async fn send(
        &self,
        claimed: &Claimed,
        secret: Option<&SigningSecret>,
        send_before: Duration,
        request_id: Uuid,
    ) -> Outcome {
        let target = match check_target(&claimed.callback_url, &self.policy) {
            Ok(target) => target,
            Err(outcome) => return outcome,
        };
        let Some(window) = SendWindow::begin(self.clock.monotonic(), send_before, self.timeout) else {
            return Outcome::NotSent(LocalFailure::LeaseTooShort);
        };
        let deadline = Instant::now() + self.timeout;
        let body = TimelyBody { payload: Some(claimed.payload.clone()), clock: self.clock.clone(), window };
        let request = self
            .client
            .get()
            .post(target.url().clone())
            .headers(headers(claimed, secret, self.clock.now(), request_id))
            .body(Body::wrap(body));
        let mut response = match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let outcome = failed(&error, &target);
                if outcome == Outcome::NotSent(LocalFailure::NoSocket) {
                    self.client.close_idle();
                }
                return outcome;
            }
            Err(_) => {
                let detail = format!("no complete response within {}", humane(self.timeout));
                return Outcome::failed(FailureReason::Timeout, detail);
            }
        };
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get_all(RETRY_AFTER)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        // The head has decided. The body is for the record, as far as it comes in time.
        let mut body = Vec::new();
        let mut read = 0;
        while read <= BODY_READ
            && let Ok(Ok(Some(chunk))) = timeout_at(deadline, response.chunk()).await
        {
            read += chunk.len();
            let room = BODY_KEPT - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        Outcome::Answered(Response { status, body: kept_body(&body), retry_after })
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

/// A payload that refuses to be written too late. It is asked for in the same step that writes the request's head, so
/// a process that was stopped while it connected, or at any moment before, sends nothing when it goes on.
struct TimelyBody {
    payload: Option<Bytes>,
    clock: Clock,
    window: SendWindow,
}

/// What [`TimelyBody`] refuses with.
#[derive(Debug, Error)]
#[error("too late to be sent")]
struct TooLate;

impl http_body::Body for TimelyBody {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if !self.window.may_write(self.clock.monotonic()) {
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(self.payload.take().map(|payload| Ok(Frame::data(payload))))
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.payload.as_ref().map_or(0, |payload| payload.len() as u64))
    }
}

fn headers(claimed: &Claimed, secret: Option<&SigningSecret>, now: Timestamp, request_id: Uuid) -> HeaderMap {
    let value =
        |text: String| HeaderValue::try_from(text).expect("ids, numbers, hex and base64 are header text");
    let webhook_id = claimed.held.delivery_id.to_string();
    let mut headers = HeaderMap::with_capacity(7);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(secret) = secret {
        let signed = sign(secret, &webhook_id, now.unix_seconds(), &claimed.payload);
        headers.insert(RUNFLOW_SIGNATURE, value(signed.runflow_signature));
        headers.insert(WEBHOOK_SIGNATURE, value(signed.webhook_signature));
    }
    headers.insert(RUNFLOW_REQUEST_ID, value(request_id.to_string()));
    headers.insert(WEBHOOK_ID, value(webhook_id));
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now.unix_seconds()));
    headers.insert(REDIAL_ATTEMPT, HeaderValue::from(claimed.held.attempt));
    headers
}

/// Finds out from the client's error what went wrong. Its own text is not used: it names the URL, which may carry
/// secrets in its query.
fn failed(error: &reqwest::Error, target: &TargetUrl) -> Outcome {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(resolve) = cause.downcast_ref::<ResolveError>() {
            return resolve.outcome();
        }
        if let Some(tls) = tls_error(cause) {
            return Outcome::failed(FailureReason::TlsError, format!("no TLS session: {tls}"));
        }
        if cause.is::<TooLate>() {
            return Outcome::NotSent(LocalFailure::LeaseTooShort);
        }
        // Once connected, something may have been sent.
        if error.is_connect()
            && let Some(failure) = cause.downcast_ref().and_then(shortage)
            && (failure != LocalFailure::NoLocalPort || is_routable(target))
        {
            tracing::debug!(%cause, origin = target.origin(), "no connection");
            return Outcome::NotSent(failure);
        }
        causes.push(cause.to_string());
        next = cause.source();
    }
    let origin = target.origin();
    if error.is_timeout() {
        return Outcome::failed(FailureReason::Timeout, format!("no connection to {origin} in time"));
    }
    let cause = causes.pop().unwrap_or_else(|| "unknown cause".to_owned());
    let detail = if error.is_connect() {
        format!("no connection to {origin}: {cause}")
    } else {
        format!("the connection to {origin} failed before a complete response: {cause}")
    };
    Outcome::failed(FailureReason::ConnectionError, detail)
}

/// Whether this host has a route to the target. The resolver returns only addresses that have one.
fn is_routable(target: &TargetUrl) -> bool {
    match target.host() {
        Host::Ipv6(address) => has_route(address.into()),
        Host::Ipv4(_) | Host::Domain(_) => true,
    }
}

/// rustls' error, which travels inside one or more `io::Error`s and is not among their sources.
fn tls_error<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    cause.downcast_ref().or_else(|| tls_error(cause.downcast_ref::<std::io::Error>()?.get_ref()?))
}

fn humane(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests;

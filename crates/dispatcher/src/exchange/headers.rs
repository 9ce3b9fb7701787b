//! Headers of a request (contract section 2).

use contracts::{Signing, Timestamp, Traceparent};
use engine::Claimed;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

const RUNFLOW_SIGNATURE: HeaderName = HeaderName::from_static("runflow-signature");
const RUNFLOW_REQUEST_ID: HeaderName = HeaderName::from_static("runflow-request-id");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const REDIAL_ATTEMPT: HeaderName = HeaderName::from_static("redial-attempt");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What identifies a request to its receiver.
#[derive(Clone, Copy)]
pub(crate) struct RequestIds {
    /// Sent as `Runflow-Request-Id`.
    pub(crate) runflow: Uuid,
    /// Sent as `traceparent`, unless the settings forbid it.
    pub(crate) traceparent: Option<Traceparent>,
}

/// Returns all headers except those that the HTTP client adds. `now` is the time of signing.
pub(crate) fn headers(
    claimed: &Claimed,
    signing: Option<&Signing>,
    now: Timestamp,
    ids: RequestIds,
) -> HeaderMap {
    let value =
        |text: String| HeaderValue::try_from(text).expect("ids, numbers, hex and base64 are header text");
    let webhook_id = claimed.held.delivery_id.to_string();
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(signing) = signing {
        let signed = signing.sign(&webhook_id, now.unix_seconds(), &claimed.payload);
        headers.insert(RUNFLOW_SIGNATURE, value(signed.runflow_signature));
        headers.insert(WEBHOOK_SIGNATURE, value(signed.webhook_signature));
    }
    headers.insert(RUNFLOW_REQUEST_ID, value(ids.runflow.to_string()));
    headers.insert(WEBHOOK_ID, value(webhook_id));
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now.unix_seconds()));
    headers.insert(REDIAL_ATTEMPT, HeaderValue::from(claimed.held.attempt));
    if let Some(traceparent) = ids.traceparent {
        headers.insert(TRACEPARENT, value(traceparent.to_string()));
    }
    headers
}

//! The dispatcher's log: one wide line per attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::{DeliveryId, FailureReason};
use engine::dispatch::Recorded;
use engine::{AttemptResult, Effect, HeldAttempt, LocalFailure, Settlement};
use reqwest::header::LOCATION;

use crate::attempt::Logged;

/// Logs the final state of an attempt's result.
pub(crate) fn attempt(held: &HeldAttempt, logged: Logged, recorded: &Recorded) {
    let AttemptResult { record, settlement, .. } = &recorded.result;
    let Some(effect) = recorded.effect else {
        tracing::error!(delivery_id = %held.delivery_id, attempt = record.number,
            "result refused by the database; the lease will end as outcome_unknown");
        return;
    };
    let failure = record.failure.as_ref();
    let timing = &record.timing;
    if let (Settlement::HandedBack(at), Effect::Recorded) = (settlement, effect) {
        tracing::info!(
            delivery_id = %held.delivery_id,
            org_id = %held.org_id,
            run_id = %held.run_id,
            attempt = record.number,
            cause = failure.map(|failure| failure.detail.as_str()),
            next_attempt_at = %at,
            claimed_at = %record.claimed_at,
            request_id = held.request_id,
            "attempt handed back"
        );
        return;
    }
    let next_attempt_at = match settlement {
        Settlement::RetryAt(at) => Some(at.to_string()),
        _ => None,
    };
    tracing::info!(
        delivery_id = %held.delivery_id,
        org_id = %held.org_id,
        run_id = %held.run_id,
        destination = %held.destination,
        attempt = record.number,
        settlement = match settlement {
            Settlement::Succeeded => "succeeded",
            Settlement::RetryAt(_) => "retry",
            Settlement::Failed => "failed",
            Settlement::HandedBack(_) => "not sent",
        },
        status = record.status_code,
        reason = failure.map(|failure| <&str>::from(failure.reason)),
        // For an HTTP error the detail adds only a redirect's target to the status, and the target may be
        // secret.
        detail = failure.filter(|failure| failure.reason != FailureReason::HttpError).map(|failure| failure.detail.as_str()),
        response_time_ms = record.response_time_ms,
        resolve_ms = timing.resolve,
        connect_ms = timing.connect,
        tls_ms = timing.tls,
        send_ms = timing.send,
        wait_ms = timing.wait,
        body_ms = timing.body,
        remote_address = timing.remote_address,
        refused_address = logged.refused_address.map(tracing::field::display),
        content_type = timing.content_type,
        response_headers = timing.headers.as_ref().and_then(loggable).map(tracing::field::debug),
        next_attempt_at,
        claimed_at = %record.claimed_at,
        request_id = held.request_id,
        runflow_request_id = logged.runflow_request_id.map(tracing::field::display),
        effect = match effect {
            Effect::Recorded => "recorded",
            Effect::Late { closed: true } => "late, closed the delivery",
            Effect::Late { closed: false } => "late",
            Effect::Dropped => "dropped",
            Effect::Locked => "locked",
        },
        "attempt"
    );
}

/// Returns the recorded headers without those that may be secret, or `None` if no header remains.
fn loggable(headers: &BTreeMap<String, String>) -> Option<BTreeMap<&str, &str>> {
    let headers = headers.iter().filter(|(name, _)| *name != LOCATION.as_str());
    let headers: BTreeMap<_, _> = headers.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    (!headers.is_empty()).then_some(headers)
}

/// Logs that the database refuses to update a delivery.
pub(crate) fn stepped_over(delivery_id: DeliveryId, wait: Duration) {
    tracing::error!(%delivery_id, ?wait, "the database refuses to update this delivery; skipped for a while");
}

/// Logs the start of a local failure that keeps attempts from being sent.
pub(crate) fn trouble(cause: LocalFailure) {
    tracing::error!(cause = cause.detail(), "attempts can't be sent; they are handed back");
}

/// Logs the end of such a failure.
pub(crate) fn trouble_over(cause: LocalFailure) {
    tracing::info!(cause = cause.detail(), "attempts can be sent again");
}

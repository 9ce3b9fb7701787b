//! The dispatcher's log, one wide line per attempt, and the metrics that are counted from the same values.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::{DeliveryId, FailureReason, Timestamp};
use engine::dispatch::Recorded;
use engine::{AttemptResult, Claimed, Effect, HeldAttempt, LocalFailure, Settlement};
use ops::Metrics;
use ops::metrics::origin;
use reqwest::header::LOCATION;

use crate::attempt::Logged;

/// Counts claimed attempts, and how late they are.
pub(crate) fn claims(metrics: &Metrics, claimed: &[Claimed], is_polled: bool) {
    if !claimed.is_empty() {
        let source = if is_polled { "relay" } else { "doorbell" };
        metrics.claim_batches.observe([source.into()], claimed.len() as f64);
    }
    for Claimed { held, due_at, .. } in claimed {
        if let Some(due_at) = due_at {
            let kind = if held.attempt == 1 { "first" } else { "retry" };
            metrics.lateness_seconds.observe_duration([kind.into()], held.claimed_at.since(*due_at));
        }
    }
}

/// Logs and counts the final state of an attempt's result, recorded at `now`.
pub(crate) fn attempt(
    metrics: &Metrics,
    now: Timestamp,
    held: &HeldAttempt,
    logged: Logged,
    recorded: &Recorded,
) {
    count(metrics, now, held, recorded);
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
            request_id = held.request.request_id,
            trace_id = trace_id(held, logged),
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
        settlement = outcome(*settlement),
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
        request_id = held.request.request_id,
        trace_id = trace_id(held, logged),
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

/// Returns the ID of the trace that the attempt belongs to, or else of its delivery's.
fn trace_id(held: &HeldAttempt, logged: Logged) -> Option<String> {
    let of_delivery = || held.request.traceparent.map(|traceparent| traceparent.trace_id);
    logged.trace_id.or_else(of_delivery).map(|id| format!("{id:032x}"))
}

fn outcome(settlement: Settlement) -> &'static str {
    match settlement {
        Settlement::Succeeded => "succeeded",
        Settlement::RetryAt(_) => "retry",
        Settlement::Failed => "failed",
        Settlement::HandedBack(_) => "not_sent",
    }
}

fn count(metrics: &Metrics, now: Timestamp, held: &HeldAttempt, recorded: &Recorded) {
    let AttemptResult { record, settlement, .. } = &recorded.result;
    let Some(effect) = recorded.effect else { return };
    let outcome = outcome(*settlement);
    let reason = record.failure.as_ref().map_or("none", |failure| failure.reason.into());
    let status_class = match record.status_code.unwrap_or_default() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        5 => "5xx",
        _ => "none",
    };
    match effect {
        Effect::Recorded => {
            metrics.attempts.count([outcome.into(), reason.into(), status_class.into()]);
            if let Some(took) = record.response_time_ms {
                let id = held.delivery_id.to_string();
                metrics.attempt_seconds.observe_of([outcome.into()], took as f64 / 1000.0, id);
            }
        }
        // The attempt was counted when its lease ended.
        Effect::Late { .. } => metrics.late_results.count([]),
        Effect::Dropped | Effect::Locked => {}
    }
    let ended = match (settlement, effect) {
        (Settlement::Succeeded, Effect::Recorded) | (_, Effect::Late { closed: true }) => "succeeded",
        (Settlement::Failed, Effect::Recorded) => "failed",
        _ => return,
    };
    metrics.ended.count([ended.into(), reason.into()]);
    metrics
        .delivery_seconds
        .observe_duration([origin(held.is_automatic), ended.into()], now.since(held.created_at));
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

#[cfg(test)]
mod tests {
    use contracts::{AttemptId, ClaimId, Destination, OrgId, RunId, Timing};
    use engine::{AttemptRecord, Failure, HoldChange};
    use uuid::Uuid;

    use super::*;

    const SECOND: i64 = 1_000_000;

    /// Returns the series that count the end of an attempt, after one that ended so.
    async fn counted(settlement: Settlement, effect: Option<Effect>) -> Vec<String> {
        let id = Uuid::nil();
        let at = Timestamp::from_micros(SECOND);
        let held = HeldAttempt {
            delivery_id: DeliveryId(id),
            org_id: OrgId(id),
            run_id: RunId(id),
            destination: Destination::from(1),
            attempt: 1,
            max_attempts: 2,
            is_automatic: true,
            created_at: at,
            request: "req".into(),
            claim_id: ClaimId(id),
            claimed_at: at,
            is_probe: false,
        };
        let failure = Failure { reason: FailureReason::Timeout, detail: "no answer".to_owned() };
        let record = AttemptRecord {
            id: AttemptId(id),
            number: 1,
            failure: (settlement != Settlement::Succeeded).then_some(failure),
            status_code: (settlement == Settlement::Succeeded).then_some(200),
            response_body: None,
            response_time_ms: Some(1500),
            timing: Timing::default(),
            claimed_at: at,
        };
        let result = AttemptResult {
            delivery_id: held.delivery_id,
            claim_id: held.claim_id,
            org_id: held.org_id,
            destination: held.destination,
            is_probe: false,
            record,
            settlement,
            hold: HoldChange::None,
        };
        let metrics = Metrics::new("test");
        count(&metrics, Timestamp::from_micros(3 * SECOND), &held, &Recorded { result, effect });
        let (text, _) = metrics.registry.scrape(None).unwrap();
        let of_attempts = ["redial_attempt", "redial_deliveries_ended", "redial_delivery_", "redial_late"];
        let is_counted = |line: &&str| {
            of_attempts.iter().any(|name| line.starts_with(name))
                && !line.contains("_bucket")
                && !line.ends_with(" 0")
        };
        text.lines().filter(is_counted).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_recorded_attempt_is_counted_with_what_follows_for_its_delivery() {
        let expected = [
            "redial_attempts_total{outcome=\"succeeded\",reason=\"none\",status_class=\"2xx\"} 1",
            "redial_attempt_duration_seconds_sum{outcome=\"succeeded\"} 1.5",
            "redial_attempt_duration_seconds_count{outcome=\"succeeded\"} 1",
            "redial_delivery_duration_seconds_sum{origin=\"automatic\",outcome=\"succeeded\"} 2.0",
            "redial_delivery_duration_seconds_count{origin=\"automatic\",outcome=\"succeeded\"} 1",
            "redial_deliveries_ended_total{outcome=\"succeeded\",reason=\"none\"} 1",
        ];
        assert_eq!(counted(Settlement::Succeeded, Some(Effect::Recorded)).await, expected);
        let retry = Settlement::RetryAt(Timestamp::from_micros(9 * SECOND));
        let expected = [
            "redial_attempts_total{outcome=\"retry\",reason=\"timeout\",status_class=\"none\"} 1",
            "redial_attempt_duration_seconds_sum{outcome=\"retry\"} 1.5",
            "redial_attempt_duration_seconds_count{outcome=\"retry\"} 1",
        ];
        assert_eq!(counted(retry, Some(Effect::Recorded)).await, expected);
    }

    #[tokio::test]
    async fn a_late_result_is_not_counted_as_an_attempt_again() {
        let late = "redial_late_results_total 1";
        assert_eq!(counted(Settlement::Failed, Some(Effect::Late { closed: false })).await, [late]);
        let closing = counted(Settlement::Succeeded, Some(Effect::Late { closed: true })).await;
        assert!(closing.iter().any(|line| line == late), "{closing:?}");
        assert!(closing.iter().any(|line| line.starts_with("redial_deliveries_ended_total")), "{closing:?}");
        assert!(!closing.iter().any(|line| line.starts_with("redial_attempts_total")), "{closing:?}");
    }

    #[tokio::test]
    async fn a_result_that_changes_nothing_is_not_counted() {
        for effect in [Some(Effect::Dropped), Some(Effect::Locked), None] {
            assert_eq!(counted(Settlement::Succeeded, effect).await, [""; 0]);
        }
    }
}

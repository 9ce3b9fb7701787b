//! What is shown, and how much of it at most.

use std::time::{Duration, Instant};

use contracts::FailureReason;
use strum::VariantArray;

use super::catalog::{REQUEST_LABEL_SETS, REQUEST_SECONDS};
use super::{Metrics, origin};
use crate::Readiness;

fn all() -> Metrics {
    let metrics = Metrics::new("1.2.3");
    metrics.database(|| 0.0, || [1, 0, 4]);
    metrics
        .readiness(Readiness::default().and("database", || None).and("broker", || Some("away".to_owned())));
    metrics.doorbells(|| [3, 2, 1]);
    metrics.parked(|| 0);
    metrics.broker_connected(|| vec![("publisher", true), ("consumer", false)]);
    metrics.unwritten_since(|| None);
    metrics
}

fn series(metrics: &Metrics) -> Vec<String> {
    let (text, _) = metrics.registry.scrape(None).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[tokio::test]
async fn docs_metrics_md_describes_each_metric() {
    let mut text = String::from(concat!(
        "<!-- Made from crates/ops/src/metrics: UPDATE_EXPECT=1 cargo test -p ops -->\n\n# Metrics\n\n",
        "Each `redial api` and `redial dispatcher` answers `GET /metrics` on `metrics.listen` (`redial dev` prints its\n",
        "address). A process shows a metric once it has something to show. No label names a host, an organization,\n",
        "a run or a URL, and a process has at most 600 series.\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n",
    ));
    for metric in all().registry.descriptions() {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        text +=
            &format!("| `{}` | {} | {} | {} |\n", metric.name, metric.kind, labels.join(", "), metric.help);
    }
    expect_test::expect_file!["../../../../docs/metrics.md"].assert_eq(&text);
}

#[tokio::test]
async fn names_and_values_are_what_prometheus_expects() {
    let metrics = all();
    metrics.accepted.count([origin(true)]);
    let shown = series(&metrics);
    for expected in [
        "redial_build_info{version=\"1.2.3\"} 1.0",
        "redial_deliveries_accepted_total{origin=\"automatic\"} 1",
        "redial_doorbells_total{result=\"dropped\"} 2.0",
        "redial_broker_connected{role=\"consumer\"} 0.0",
        "redial_ready{check=\"broker\"} 0.0",
        "redial_ready{check=\"database\"} 1.0",
        "redial_oldest_unwritten_result_age_seconds 0.0",
    ] {
        assert!(shown.iter().any(|line| line == expected), "{expected} in {shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.starts_with("redial_oldest_due_age_seconds")), "never sampled");
    metrics.oldest_due_age.set([], 7.0);
    assert!(series(&metrics).iter().any(|line| line == "redial_oldest_due_age_seconds 7.0"));
    metrics.oldest_due_age.clear();
    assert!(!series(&metrics).iter().any(|line| line.starts_with("redial_oldest_due_age_seconds")));
}

#[tokio::test]
async fn exemplars_are_shown_to_those_who_accept_openmetrics() {
    let metrics = all();
    metrics.attempt_seconds.observe_of(["succeeded".into()], 0.02, "d-1".to_owned());
    let (text, content_type) =
        metrics.registry.scrape(Some("application/openmetrics-text;version=1.0.0")).unwrap();
    assert!(content_type.starts_with("application/openmetrics-text"));
    assert!(text.contains("# {delivery_id=\"d-1\"} 0.02") && text.ends_with("# EOF\n"), "{text}");
    let (text, content_type) = metrics.registry.scrape(Some("text/plain")).unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4") && !text.contains("d-1"));
}

#[tokio::test]
async fn a_client_that_tries_every_route_and_status_does_not_add_series_without_limit() {
    let metrics = Metrics::new("1");
    for route in 0..1000 {
        for status in [200, 404, 503] {
            metrics.request(&format!("/{route}"), "GET", status, Duration::from_millis(1));
        }
    }
    let of_requests = series(&metrics).iter().filter(|line| line.starts_with("http_server")).count();
    assert!(of_requests <= (REQUEST_LABEL_SETS + 3) * (REQUEST_SECONDS.len() + 3), "{of_requests}");
    let of_others = series(&metrics).iter().filter(|line| line.contains("route=\"other\"")).count();
    assert!(of_others > 0);
}

#[tokio::test]
async fn a_process_has_at_most_600_series() {
    let metrics = all();
    for status in [200, 201, 202, 204, 400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 500, 503] {
        for route in 0..3 {
            metrics.request(&format!("/{route}"), "GET", status, Duration::ZERO);
        }
    }
    let api = series(&metrics).len();
    assert!(api <= 600, "api: {api}");
    let metrics = all();
    for outcome in ["succeeded", "retry", "failed", "not_sent"] {
        metrics.attempt_seconds.observe([outcome.into()], 1.0);
        for reason in FailureReason::VARIANTS {
            for class in ["2xx", "3xx", "4xx", "5xx", "none"] {
                // Only a receiver's response has a class.
                if class == "none" || *reason == FailureReason::HttpError {
                    metrics.attempts.count([outcome.into(), <&str>::from(*reason).into(), class.into()]);
                }
            }
        }
    }
    for is_automatic in [true, false] {
        for outcome in ["succeeded", "failed"] {
            metrics.delivery_seconds.observe([origin(is_automatic), outcome.into()], 1.0);
        }
    }
    for reason in FailureReason::VARIANTS {
        metrics.ended.count(["failed".into(), <&str>::from(*reason).into()]);
    }
    for step in ["claim", "record", "recover", "sample"] {
        for kind in ["busy", "unavailable", "refused"] {
            metrics.transaction(step, Instant::now(), Some(kind));
        }
    }
    for label in ["first", "retry"] {
        metrics.lateness_seconds.observe([label.into()], 1.0);
        metrics.claim_batches.observe([label.into()], 1.0);
    }
    let dispatcher = series(&metrics).len();
    assert!(dispatcher <= 600, "dispatcher: {dispatcher}");
}

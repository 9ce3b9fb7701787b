//! The metrics of a live installation.

use serde_json::Value;
use tokio::time::Instant;

use crate::system::{System, TIMEOUT, shared_broker};

/// Returns the URLs of `path` on the metrics listeners, in the order in which the services were started.
fn listeners(system: &System, path: &str) -> Vec<String> {
    let logs = system.logs.lock().unwrap().clone();
    let lines = serde_json::Deserializer::from_str(&logs).into_iter::<Value>().map(Result::unwrap);
    let serving = lines.filter(|line| line["message"] == "serving metrics");
    serving.map(|line| format!("http://{}{path}", line["listen"].as_str().unwrap())).collect()
}

/// Returns what all services show.
async fn scrape(system: &System) -> String {
    let mut text = String::new();
    for url in listeners(system, "/metrics") {
        let response = system.http.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        text += &response.text().await.unwrap();
    }
    text
}

/// Returns the sum of the series that begin so.
fn sum(text: &str, series: &str) -> f64 {
    let values = text.lines().filter(|line| line.starts_with(series));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_metrics_appear_on_a_live_installation_and_agree_with_the_history() {
    let settings = [("REDIAL_METRICS__LISTEN", "127.0.0.1:0"), ("REDIAL_DELIVERY__SCHEDULE", "50ms")];
    let system = System::start(&shared_broker(), 1, 1, &settings);
    let runs = system.import_runs(20, "/fail-first/1");
    let mut attempts = 0;
    for accepted in system.redeliver_all(&runs).await {
        let settled = system.settled(accepted["id"].as_str().unwrap()).await;
        attempts += settled["attempts"].as_array().unwrap().len();
    }
    let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
    let names = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let names: Vec<&str> = names.collect();
    let deadline = Instant::now() + TIMEOUT;
    let text = loop {
        let text = scrape(&system).await;
        let missing = names.iter().filter(|name| !text.contains(&format!("\n{name}")));
        // The backlog is sampled after some seconds; no transaction fails here.
        if missing.clone().all(|name| *name == "redial_store_errors_total") {
            break text;
        }
        assert!(Instant::now() < deadline, "missing: {:?} in\n{text}", missing.collect::<Vec<_>>());
    };
    assert_eq!(sum(&text, "redial_deliveries_accepted_total{origin=\"redelivery\"}"), 20.0);
    assert_eq!(sum(&text, "redial_deliveries_ended_total{outcome=\"succeeded\""), 20.0);
    assert_eq!(sum(&text, "redial_attempts_total"), attempts as f64);
    assert_eq!(
        sum(&text, "redial_attempts_total{outcome=\"retry\",reason=\"http_error\",status_class=\"5xx\"}"),
        20.0
    );
    assert_eq!(sum(&text, "redial_attempt_lateness_seconds_count{kind=\"retry\"}"), 20.0);
    assert_eq!(sum(&text, "redial_ready"), 8.0, "two checks of an api, six of a dispatcher");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_answers_what_is_due_or_in_flight_in_the_whole_installation() {
    let settings = [("REDIAL_METRICS__LISTEN", "127.0.0.1:0")];
    let system = System::start(&shared_broker(), 1, 1, &settings);
    let [api, dispatcher] = &listeners(&system, "/scaling")[..] else { panic!("two services") };
    let ask = async |url: &String| {
        let response = system.http.get(url).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    assert_eq!(ask(api).await.0, 503, "only dispatchers know");
    let deadline = Instant::now() + TIMEOUT;
    let reaches = async |work: u64| {
        let expected = (200, format!("{{\"work\":{work}}}"));
        loop {
            let answer = ask(dispatcher).await;
            if answer == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{answer:?}, expected {expected:?}");
            tokio::task::yield_now().await;
        }
    };
    reaches(0).await;
    // Longer than the period of sampling, shorter than the timeout of an attempt.
    let runs = system.import_runs(3, "/hang/9");
    system.redeliver_all(&runs).await;
    reaches(3).await;
    system.stop().await;
}

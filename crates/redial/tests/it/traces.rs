//! Traces of a live installation, as an OTLP collector receives them.

use std::collections::HashMap;
use std::net::SocketAddr;

use contracts::{RunId, Traceparent};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use receiver::{Received, Receiver};
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use crate::cli::{Cli, KEY};
use crate::system::{System, TIMEOUT, shared_broker};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const NOT_SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// A collector that keeps what it receives.
struct Collector {
    exports: UnboundedReceiver<Received>,
    _server: Receiver,
    url: String,
    /// The spans received so far, each with its service's name.
    spans: Vec<(String, Span)>,
}

impl Collector {
    fn start() -> Collector {
        let (sink, exports) = unbounded_channel();
        let options = receiver::Options { sink: Some(sink), ..Default::default() };
        let server = Receiver::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).unwrap();
        Collector { exports, url: server.url("/ok"), _server: server, spans: Vec::new() }
    }

    /// The settings of services that export to it, `sample_ratio` of the traces that begin with them.
    fn settings<'a>(&'a self, sample_ratio: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", self.url.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("REDIAL_TRACES__SAMPLE_RATIO", sample_ratio),
            ("REDIAL_DELIVERY__SCHEDULE", "50ms"),
        ]
    }

    /// Waits until `is_complete`, and returns all spans, each with its service's name.
    async fn gather(&mut self, is_complete: impl Fn(&[(String, Span)]) -> bool) -> &[(String, Span)] {
        let deadline = Instant::now() + TIMEOUT;
        while !is_complete(&self.spans) {
            let next = timeout_at(deadline, self.exports.recv()).await;
            let export = next.unwrap_or_else(|_| panic!("incomplete: {:#?}", self.spans)).unwrap();
            let export = ExportTraceServiceRequest::decode(export.body.as_slice()).unwrap();
            for spans in export.resource_spans {
                let resource = spans.resource.unwrap();
                let service = text(&resource.attributes, "service.name").unwrap();
                let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
                self.spans.extend(spans.map(|span| (service.clone(), span)));
            }
        }
        &self.spans
    }
}

/// Returns an attribute as text.
fn text(attributes: &[opentelemetry_proto::tonic::common::v1::KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        any_value::Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    text(&span.attributes, key)
}

/// Returns the `traceparent` of what a recorded span causes.
fn context(span: &Span) -> Traceparent {
    Traceparent {
        trace_id: u128::from_be_bytes(span.trace_id.as_slice().try_into().unwrap()),
        parent_id: u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap()),
        is_sampled: true,
    }
}

/// Asks for a redelivery with these headers and waits until it has ended.
async fn redeliver(system: &System, run: RunId, headers: &[(&'static str, &str)]) -> Value {
    let path = format!("/v1/runs/{run}/callback-redeliveries");
    let mut request = system.http.post(system.url(0, &path)).bearer_auth(&system.token);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 201);
    let accepted: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    system.settled(accepted["id"].as_str().unwrap()).await
}

/// Returns the log lines with this message.
fn logged(system: &System, message: &str) -> Vec<Value> {
    let logs = system.logs.lock().unwrap().clone();
    let lines = serde_json::Deserializer::from_str(&logs).into_iter::<Value>().map(Result::unwrap);
    lines.filter(|line| line["message"] == message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivery_is_traced_from_its_request_over_its_doorbell_to_each_attempt() {
    let mut collector = Collector::start();
    let mut system = System::start(&shared_broker(), 1, 1, &collector.settings("1"));
    let run = system.import_runs(1, "/fail-first/1")[0];
    let delivery = redeliver(&system, run, &[]).await;
    let is_complete = |spans: &[(String, Span)]| {
        let of_run = |(_, span): &&(String, Span)| attribute(span, "redial.run_id") == Some(run.to_string());
        let has_request = spans.iter().any(|(_, span)| span.name.starts_with("POST /v1/runs/"));
        has_request && spans.iter().filter(of_run).count() == 3
    };
    let spans = collector.gather(is_complete).await;
    let named =
        |name: &str| -> Vec<&(String, Span)> { spans.iter().filter(|(_, span)| span.name == name).collect() };

    let (service, request) = named("POST /v1/runs/{run_id}/callback-redeliveries")[0];
    assert_eq!(service, "redial-api");
    assert!(request.parent_span_id.is_empty(), "no caller's trace");
    assert_eq!(attribute(request, "http.response.status_code").as_deref(), Some("201"));

    let (service, doorbell) = named("ring doorbell")[0];
    assert_eq!(service, "redial-api");
    assert_eq!((&doorbell.trace_id, &doorbell.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(attribute(doorbell, "messaging.system").as_deref(), Some("rabbitmq"));
    assert_eq!(attribute(doorbell, "messaging.destination.name").as_ref(), Some(&system.queue));

    let mut attempts = named("POST");
    attempts.sort_by_key(|(_, span)| attribute(span, "redial.attempt"));
    let [(service, first), (_, second)] = attempts[..] else { panic!("{attempts:#?}") };
    assert_eq!(service, "redial-dispatcher");
    assert_eq!((&first.trace_id, &first.parent_span_id), (&doorbell.trace_id, &doorbell.span_id));
    assert_eq!(attribute(first, "error.type").as_deref(), Some("503"));
    assert_eq!(attribute(first, "http.request.resend_count"), None);
    assert_eq!(attribute(first, "redial.delivery_id").as_deref(), delivery["id"].as_str());

    assert!(second.parent_span_id.is_empty(), "an attempt hours later begins a trace of its own");
    assert_ne!(second.trace_id, first.trace_id);
    let [link] = &second.links[..] else { panic!("{second:#?}") };
    assert_eq!((&link.trace_id, &link.span_id), (&request.trace_id, &request.span_id));
    assert_eq!(attribute(second, "http.request.resend_count").as_deref(), Some("1"));
    assert_eq!(attribute(second, "http.response.status_code").as_deref(), Some("200"));
    let has_path =
        |span: &Span| span.attributes.iter().any(|attribute| format!("{attribute:?}").contains("fail-first"));
    assert!(!has_path(first) && !has_path(second), "the URL's path may be secret");

    let (first, second, trace_id) = (context(first), context(second), context(request).trace_id);
    let sent = system.gather(2).await;
    assert_eq!(sent[0].header("traceparent"), Some(&*first.to_string()));
    assert_eq!(sent[1].header("traceparent"), Some(&*second.to_string()));
    let hex = |id: u128| Value::from(format!("{id:032x}"));
    let requests = logged(&system, "request");
    assert!(requests.iter().any(|line| line["method"] == "POST" && line["trace_id"] == hex(trace_id)));
    let traced: Vec<Value> = logged(&system, "attempt").iter().map(|line| line["trace_id"].clone()).collect();
    assert_eq!(traced, [hex(trace_id), hex(second.trace_id)]);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_its_caller_has_sampled_is_continued_whatever_the_ratio() {
    let mut collector = Collector::start();
    let system = System::start(&shared_broker(), 1, 1, &collector.settings("0"));
    let runs = system.import_runs(3, "/ok");
    redeliver(&system, runs[0], &[]).await;
    redeliver(&system, runs[1], &[("traceparent", NOT_SAMPLED)]).await;
    // A caller without a token causes no spans.
    let refused =
        system.http.get(system.url(0, "/v1/runs")).header("traceparent", CALLER).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    redeliver(&system, runs[2], &[("traceparent", CALLER)]).await;
    let caller: Traceparent = CALLER.parse().unwrap();
    let spans = collector.gather(|spans| spans.len() >= 3).await;
    for (_, span) in spans {
        assert_eq!(context(span).trace_id, caller.trace_id, "{span:#?}");
    }
    let request = spans.iter().find(|(_, span)| span.name.starts_with("POST /v1")).unwrap();
    assert_eq!(request.1.parent_span_id, caller.parent_id.to_be_bytes());
    assert_eq!(spans.len(), 3, "{spans:#?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_get_the_callers_traceparent_and_nothing_else_of_its_trace_even_if_tracing_is_off() {
    let mut system = System::start(&shared_broker(), 1, 1, &[("REDIAL_DELIVERY__SCHEDULE", "50ms")]);
    let runs = system.import_runs(3, "/fail-first/1");
    let headers = [("traceparent", CALLER), ("tracestate", "vendor=secret"), ("baggage", "user=secret")];
    redeliver(&system, runs[0], &headers).await;
    for sent in system.gather(2).await {
        assert_eq!(sent.header("traceparent"), Some(CALLER));
        assert_eq!((sent.header("tracestate"), sent.header("baggage")), (None, None));
    }
    for line in logged(&system, "attempt") {
        assert_eq!(line["trace_id"], CALLER[3..35]);
    }
    redeliver(&system, runs[1], &[("traceparent", "00-of-course-not")]).await;
    redeliver(&system, runs[2], &[("traceparent", CALLER), ("traceparent", NOT_SAMPLED)]).await;
    for sent in system.gather(4).await {
        assert_eq!(sent.header("traceparent"), None, "malformed or repeated");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_get_no_traceparent_if_the_settings_say_so() {
    let settings = [("REDIAL_DELIVERY__SEND_TRACEPARENT", "false")];
    let mut system = System::start(&shared_broker(), 1, 1, &settings);
    let run = system.import_runs(1, "/ok")[0];
    redeliver(&system, run, &[("traceparent", CALLER)]).await;
    assert_eq!(system.gather(1).await[0].header("traceparent"), None);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_delays_no_delivery() {
    let away = HashMap::from([
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
        ("REDIAL_TRACES__SAMPLE_RATIO", "1"),
    ]);
    let system = System::start(&shared_broker(), 1, 1, &Vec::from_iter(away));
    let runs = system.import_runs(20, "/ok");
    for accepted in system.redeliver_all(&runs).await {
        assert_eq!(system.settled(accepted["id"].as_str().unwrap()).await["status_code"], "succeeded");
    }
    system.stop().await;
}

#[test]
fn an_endpoint_that_is_not_a_url_ends_the_start_with_status_2_and_names_the_variable() {
    let cli = Cli::new()
        .with("DATABASE_URL", "postgres://127.0.0.1:1/x")
        .with("AMQP_URL", "amqp://127.0.0.1:1")
        .with("REDIAL_SECRETS__KEYS", KEY)
        .with("REDIAL_API__LISTEN", "127.0.0.1:0")
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url");
    for service in ["api", "dispatcher"] {
        let ended = cli.run(&[service]);
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        assert!(ended.stderr.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{}", ended.stderr);
    }
}

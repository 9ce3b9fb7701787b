//! A server with its own database, an organization, a token, and the consumer of its queue.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use api::{Api, Limits};
use contracts::{
    AttemptId, ClaimId, DeliveryId, FailureReason, Job, OrgId, PayloadFormat, RunId, Scopes, Timestamp,
    Timing,
};
use engine::{AttemptRecord, AttemptResult, Failure, HoldChange, Settlement};
use ops::{Metrics, Readiness};
use queue::Consumer;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use store::{AcceptPolicy, Clock, DatabaseUrl, Store};
use testkit::{Backend, OnBackend, TestDatabase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The server's connections to its database.
pub(crate) const CONNECTIONS: u32 = 8;
pub(crate) const MAX_BODY: usize = 64 * 1024;
pub(crate) const RUN: &str = "3c90c3cc-0d44-4b50-8888-8dd25736052a";
/// A succeeded run, as reported by the run engine.
pub(crate) const SUCCEEDED: &str = r#"{"status_code": "succeeded", "output": {"images": []}, "duration_ms": 123,
    "created_at": "2023-11-07T05:31:56Z", "completed_at": "2023-11-07T05:31:57Z",
    "callback_url": "https://Example.com/hook", "metadata": {"order": 17}}"#;

/// A running API. On drop, it asserts that no unexpected doorbell is left.
pub(crate) struct TestApi {
    pub(crate) addr: SocketAddr,
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) queue: Consumer,
    pub(crate) org: OrgId,
    pub(crate) token: String,
    pub(crate) client: reqwest::Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<std::io::Result<()>>,
    pub(crate) database: Option<TestDatabase>,
}

/// A response that meets the requirements on every response.
#[derive(Debug, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl OnBackend for TestApi {
    async fn on(backend: Backend) -> TestApi {
        TestApi::limited(backend, Limits::default()).await
    }
}

impl TestApi {
    pub(crate) async fn limited(backend: Backend, limits: Limits) -> TestApi {
        let database = TestDatabase::new(backend);
        let url = database.url().clone();
        TestApi::at(database, &url, limits).await
    }

    /// Starts an API that connects to its database at `url`, which may lead through a proxy that disturbs it.
    pub(crate) async fn at(database: TestDatabase, url: &DatabaseUrl, limits: Limits) -> TestApi {
        let clock = Clock::manual(Timestamp::parse("2026-01-02T03:04:05.678Z").unwrap());
        TestApi::set_up(database, url, limits, clock).await
    }

    /// Restarts with other limits on the same database.
    pub(crate) async fn limited_to(mut self, limits: Limits) -> TestApi {
        let database = self.database.take().expect("the database was dropped");
        let url = database.url().clone();
        TestApi::at(database, &url, limits).await
    }

    pub(crate) async fn with_clock(backend: Backend, clock: Clock) -> TestApi {
        let database = TestDatabase::new(backend);
        let url = database.url().clone();
        TestApi::set_up(database, &url, Limits::default(), clock).await
    }

    async fn set_up(database: TestDatabase, url: &DatabaseUrl, limits: Limits, clock: Clock) -> TestApi {
        _ = rustls::crypto::ring::default_provider().install_default();
        let store = Store::open_with_clock(url, CONNECTIONS, clock.clone()).await.unwrap();
        let (publisher, queue) = queue::in_process(100);
        let shutdown = CancellationToken::new();
        let api = Api {
            tracer: Default::default(),
            readiness: Readiness::of_database(&store, shutdown.clone()),
            metrics: Metrics::new("test"),
            store: store.clone(),
            publisher,
            egress: egress::Policy::default(),
            keyring: testkit::keyring(),
            accept: AcceptPolicy { max_attempts: 8, payload_format: PayloadFormat::Python },
            max_body: MAX_BODY,
            limits,
            trusted_proxies: vec!["127.0.0.0/30".parse().unwrap()],
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(api::run(listener, api, 2, shutdown.clone()));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let (org, token) = organization(&store, Scopes::All).await;
        let database = Some(database);
        TestApi { addr, store, clock, queue, org, token, client, shutdown, server, database }
    }

    /// Creates another organization with its own token.
    pub(crate) async fn another_organization(&self) -> (OrgId, String) {
        organization(&self.store, Scopes::All).await
    }

    /// Creates another token of this organization.
    pub(crate) async fn token(&self, scopes: Scopes) -> String {
        token(&self.store, self.org, scopes).await
    }

    /// A request without a token.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.addr))
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &'static str) -> Reply {
        send(self.request(Method::POST, path).header(CONTENT_TYPE, "application/json").body(body)).await
    }

    pub(crate) fn put(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.request(Method::PUT, path).header(CONTENT_TYPE, "application/json").body(body)
    }

    /// Reports the run [`RUN`].
    pub(crate) async fn put_run(&self, body: &'static str) -> Reply {
        send(self.put(&format!("/v1/runs/{RUN}"), body)).await
    }

    pub(crate) async fn redeliver(&self) -> Reply {
        send(self.request(Method::POST, &redeliveries(RUN))).await
    }

    /// Reports the succeeded run and completes its automatic delivery with a 204.
    pub(crate) async fn delivered_run(&mut self) {
        assert_eq!(self.put_run(SUCCEEDED).await.status, 201);
        let job = self.doorbell().await;
        self.claim(&job).await;
        self.finish(&job, None, Settlement::Succeeded).await;
    }

    /// Waits for the next doorbell, which may ring after the response.
    pub(crate) async fn doorbell(&mut self) -> Job {
        let next = tokio::time::timeout(Duration::from_secs(10), self.queue.next());
        next.await.expect("a doorbell within 10 s").unwrap().job
    }

    /// Claims the delivery, as a dispatcher does on a doorbell.
    pub(crate) async fn claim(&self, job: &Job) {
        let job = job.clone();
        let claim = move |tx: &mut _, now| store::claim_jobs(tx, now, Duration::from_secs(60), CLAIM, &[job]);
        assert_eq!(self.store.write(claim).await.unwrap().len(), 1);
    }

    /// Records the result, as a dispatcher does after an attempt.
    pub(crate) async fn finish(&self, job: &Job, failed: Option<u16>, settlement: Settlement) {
        let result = |now| AttemptResult {
            delivery_id: job.delivery_id,
            org_id: job.org_id,
            claim_id: CLAIM,
            destination: job.destination,
            is_probe: false,
            record: AttemptRecord {
                id: AttemptId::new(now),
                number: job.attempt,
                failure: failed.map(|status| Failure {
                    reason: FailureReason::HttpError,
                    detail: format!("the receiver answered {status}"),
                }),
                status_code: Some(failed.unwrap_or(204).into()),
                response_body: Some("thanks".into()),
                response_time_ms: Some(12),
                timing: Timing { wait: Some(11), ..Timing::default() },
                claimed_at: now,
            },
            settlement,
            hold: HoldChange::None,
        };
        let result = result(self.clock.now());
        self.store.write(move |tx, now| store::finish(tx, now, &[result])).await.unwrap();
    }

    /// Drops the database while the server runs.
    pub(crate) fn lose_database(&mut self) {
        self.database = None;
    }

    /// Returns everything recorded of the run [`RUN`], to check that nothing has changed.
    pub(crate) async fn record(&self) -> (Reply, Vec<contracts::Delivery>) {
        let (org, run) = (self.org, RUN.parse::<RunId>().unwrap());
        let mut reply = self.get(&format!("/v1/runs/{RUN}")).await;
        reply.headers.clear();
        let deliveries = self.store.read(move |tx| testkit::deliveries_of_run(tx, org, run)).await.unwrap();
        (reply, deliveries.unwrap_or_default())
    }

    /// Sends bytes over a new connection and reads the response, an object, to its last brace.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "the connection was closed");
        }
        String::from_utf8(answer).unwrap()
    }
}

impl Drop for TestApi {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if !std::thread::panicking() {
            assert_eq!(self.queue.try_next().map(|message| message.job), None, "an unexpected doorbell");
        }
    }
}

const CLAIM: ClaimId = ClaimId(Uuid::from_u128(77));

async fn organization(store: &Store, scopes: Scopes) -> (OrgId, String) {
    let made = store.write(|tx, now| store::create_organization(tx, now, "acme")).await.unwrap();
    (made.id, token(store, made.id, scopes).await)
}

async fn token(store: &Store, org: OrgId, scopes: Scopes) -> String {
    let made =
        store.write(move |tx, now| store::create_token(tx, now, org, scopes, None, None)).await.unwrap();
    made.token.to_string()
}

pub(crate) fn redeliveries(run: impl std::fmt::Display) -> String {
    format!("/v1/runs/{run}/callback-redeliveries")
}

/// Sends a request and checks the requirements on every response: a request ID, JSON, and the error envelope
/// unless it is a 2xx.
pub(crate) async fn send(request: RequestBuilder) -> Reply {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let reply = Reply { status: status.as_u16(), headers, text: response.text().await.unwrap() };
    assert!(!reply.header("x-request-id").is_empty());
    assert_eq!(reply.header("content-type"), "application/json");
    if !status.is_success() {
        let Value::Object(envelope) = reply.json() else { panic!("no envelope: {}", reply.text) };
        assert!(reply.text.starts_with(r#"{"code":""#), "{}", reply.text);
        let keys: Vec<&str> = envelope.keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "errors", "message"]);
        assert!(envelope["message"].is_string());
    }
    reply
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    pub(crate) fn id(&self) -> DeliveryId {
        self.json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// Returns status and code.
    pub(crate) fn error(&self) -> (u16, String) {
        (self.status, self.json()["code"].as_str().unwrap_or_default().to_owned())
    }

    /// Returns the errors of a 422 by location, such as `body.status_code missing`.
    pub(crate) fn invalid(&self) -> Vec<String> {
        assert_eq!(self.error(), (422, "VALIDATION_ERROR".into()), "{}", self.text);
        let errors = self.json()["errors"].as_array().unwrap().clone();
        let loc = |error: &Value| {
            let steps = error["loc"].as_array().unwrap();
            steps.iter().map(|step| step.to_string().replace('"', "")).collect::<Vec<_>>().join(".")
        };
        errors.iter().map(|error| format!("{} {}", loc(error), error["type"].as_str().unwrap())).collect()
    }

    /// Returns the text with one member per line, without values that differ from run to run.
    pub(crate) fn shown(&self, hide: &[(&str, &dyn std::fmt::Display)]) -> String {
        let text = self.text.replace(",\"", ",\n\"");
        hide.iter().fold(text, |text, (name, value)| text.replace(&value.to_string(), &format!("<{name}>")))
    }
}

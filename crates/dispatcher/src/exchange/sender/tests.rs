use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use contracts::{ClaimId, DeliveryId, Destination, OrgId, RunId, Timestamp};
use engine::{Failure, HeldAttempt};
use futures_util::{StreamExt, stream};
use hickory_resolver::Hosts;
use hickory_resolver::proto::op::ResponseCode;
use receiver::Receiver;
use rustix::process::{Resource, Rlimit, setrlimit};
use uuid::Uuid;

use super::*;
use crate::dns::test_name_server::{NameServer, Reply};
use crate::exchange::client::max_kept;
use crate::{Certificates, Limits, RetryPolicy};

fn ids() -> RequestIds {
    RequestIds { runflow: Uuid::new_v4(), traceparent: None }
}

fn claimed(url: &str) -> Claimed {
    let (id, now) = (Uuid::new_v4(), Timestamp::from_micros(1_000_000));
    let held = HeldAttempt {
        delivery_id: DeliveryId(id),
        org_id: OrgId(id),
        run_id: RunId(id),
        destination: Destination::from(1),
        attempt: 1,
        max_attempts: 1,
        is_automatic: false,
        created_at: now,
        request: "req-1".into(),
        claim_id: ClaimId(id),
        claimed_at: now,
        is_probe: false,
    };
    Claimed {
        held,
        due_at: None,
        callback_url: url.to_owned(),
        payload: "{}".into(),
        signing_secret_id: None,
    }
}

fn settings() -> Settings {
    let retry = RetryPolicy {
        schedule: vec![Duration::ZERO],
        jitter: 0.0,
        stop_on_gone: false,
        hold_cap: Duration::ZERO,
    };
    Settings {
        limits: Limits {
            max_in_flight: 64,
            max_in_flight_bytes: 1 << 20,
            max_in_flight_per_destination: 8,
            lease: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            retry,
        },
        connect_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(1),
        send_traceparent: true,
        certificates: Certificates::default(),
        secret_overlap: Duration::ZERO,
        retention: crate::Retention::default(),
        drain: Duration::ZERO,
    }
}

const LONG: Duration = Duration::from_secs(3600);

/// Creates a sender that may call the ranges of `allow`, with the given name server and limits of
/// connections.
fn sender_to(
    allow: &str,
    settings: &Settings,
    names: &NameServer,
    max_kept: usize,
    max_age: Duration,
) -> Sender {
    let policy = Arc::new(Policy::new(vec![allow.parse().unwrap()]));
    let names = Arc::new(names.names(Hosts::default(), Duration::from_secs(1)));
    let resolver = Resolver::with(policy.clone(), move || names.clone(), Duration::from_secs(1), 256);
    let clients = Clients::with_limits(max_kept, max_age, settings, resolver).unwrap();
    Sender::with(clients, settings, policy, Clock::system())
}

fn sender_with(settings: &Settings, names: &NameServer, max_kept: usize) -> Sender {
    sender_to("127.0.0.0/8", settings, names, max_kept, LONG)
}

fn sender(names: &NameServer, max_kept: usize) -> Sender {
    sender_with(&settings(), names, max_kept)
}

impl Sender {
    async fn sent(&self, url: &str) -> Outcome {
        self.traced(url).await.0
    }

    async fn traced(&self, url: &str) -> (Outcome, Timing, Arc<Trace>) {
        self.sent_for(OrgId(Uuid::new_v4()), url).await
    }

    async fn sent_for(&self, org: OrgId, url: &str) -> (Outcome, Timing, Arc<Trace>) {
        let send_before = self.clock.monotonic() + Duration::from_secs(60);
        let trace = Trace::begin(org, 2);
        let (outcome, timing) = self.send(&claimed(url), None, send_before, ids(), &trace).await;
        (outcome, timing, trace)
    }
}

/// As after a SIGSTOP between connecting and writing.
#[tokio::test]
async fn a_request_that_is_too_late_when_it_would_be_written_is_not_written() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", receiver.local_addr().unwrap());
    let clock = Clock::manual(Timestamp::from_micros(1_000_000));
    let window = SendWindow::begin(clock.monotonic(), Duration::MAX, Duration::ZERO).unwrap();
    let trace = Trace::begin(OrgId(Uuid::nil()), 2);
    let body = TimelyBody::new("{}".into(), clock, window, trace.clone());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let error = client.post(&url).body(Body::wrap(body)).send().await.unwrap_err();
    let too_late = Outcome::NotSent(LocalFailure::LeaseTooShort);
    assert_eq!(failed(&error, &TargetUrl::parse(&url).unwrap(), &trace), too_late);
    let mut received = Vec::new();
    receiver.accept().unwrap().0.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"", "not even the head");
}

#[tokio::test]
async fn header_names_are_sent_in_lower_case() {
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/Path?Q", receiver.local_addr().unwrap());
    let heard = tokio::task::spawn_blocking(move || {
        let mut connection = receiver.accept().unwrap().0;
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).unwrap();
        String::from_utf8(request[..length].to_vec()).unwrap()
    });
    let outcome = sender(&NameServer::start(|_, _| Reply::Silence).await, usize::MAX).sent(&url).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "the receiver hung up: {outcome:?}");
    let request = heard.await.unwrap();
    let (head, _) = request.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /Path?Q HTTP/1.1"));
    let names: Vec<_> = lines.map(|line| line.split_once(':').unwrap().0).collect();
    assert!(names.contains(&"webhook-id") && names.contains(&"content-length"), "{names:?}");
    assert!(names.iter().all(|name| *name == name.to_lowercase()), "{names:?}");
}

/// The receiver accepts the connection and stays silent, even in the TLS handshake.
#[tokio::test]
async fn a_connection_that_takes_too_long_is_a_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("https://{}", silent.local_addr().unwrap());
    let names = NameServer::start(|_, _| Reply::Silence).await;
    let hasty = Settings { connect_timeout: Duration::from_millis(100), ..settings() };
    let sender = sender_with(&hasty, &names, usize::MAX);
    let detail = format!("no TLS session with {origin} in time: the handshake did not finish");
    assert_eq!(sender.sent(&origin).await, Outcome::failed(FailureReason::Timeout, detail));
}

#[tokio::test]
async fn a_lease_too_short_for_the_whole_budget_is_a_local_failure() {
    let sender = sender(&NameServer::start(|_, _| Reply::Silence).await, usize::MAX);
    let now = sender.clock.monotonic();
    let trace = Trace::begin(OrgId(Uuid::nil()), 2);
    let (outcome, _) = sender.send(&claimed("http://127.0.0.1:9090/"), None, now, ids(), &trace).await;
    assert_eq!(outcome, Outcome::NotSent(LocalFailure::LeaseTooShort));
}

#[tokio::test]
async fn errors_from_name_servers_are_dns_errors_and_their_silence_is_a_local_failure() {
    let receiver = Receiver::bind(([127, 0, 0, 1], 0).into(), receiver::Options::default()).unwrap();
    let names = NameServer::start(|name, _| match name {
        "receiver.example." => Reply::Address([127, 0, 0, 1].into()),
        "internal.example." => Reply::Address([10, 0, 0, 1].into()),
        "missing.example." => Reply::Code(ResponseCode::NXDomain),
        "broken.example." => Reply::Code(ResponseCode::ServFail),
        "empty.example." => Reply::Code(ResponseCode::NoError),
        _ => Reply::Silence,
    });
    let sender = sender(&names.await, usize::MAX);
    let port = receiver.addr().port();
    let sent = |name: &str| {
        let url = format!("http://{name}:{port}/ok");
        let sender = &sender;
        async move { sender.sent(&url).await }
    };
    assert_eq!(sent("silent.example").await, Outcome::NotSent(LocalFailure::NoNameServer));
    for (name, detail) in [
        ("missing.example", "does not resolve to an address that may be called"),
        ("broken.example", "could not be resolved: the name server answered"),
        ("empty.example", "does not resolve to an address that may be called"),
        ("internal.example", "does not resolve to an address that may be called"),
    ] {
        let outcome = sent(name).await;
        let Outcome::Failed(Failure { reason: FailureReason::DnsError, detail: said }) = &outcome else {
            panic!("{outcome:?}")
        };
        assert!(said.starts_with(&format!("{name} {detail}")), "{outcome:?}");
    }
    let (silent, outcome) = tokio::join!(sent("silent.example"), async {
        sent("missing.example").await; // from the cache
        sent("receiver.example").await
    });
    assert!(matches!(outcome, Outcome::Answered(Response { status: 200, .. })), "{outcome:?}");
    let detail = "silent.example could not be resolved: no answer";
    assert_eq!(silent, Outcome::failed(FailureReason::DnsError, detail));
    assert_eq!(receiver.posts(), 1);
}

const DESTINATIONS: usize = 700;
/// Environment variable with the receiver's port, for the child process below.
const PORT: &str = "REDIAL_TEST_PORT";

#[tokio::test(flavor = "multi_thread")]
async fn seven_hundred_destinations_are_called_with_512_open_files() {
    let receiver = Receiver::bind(([0, 0, 0, 0], 0).into(), receiver::Options::default()).unwrap();
    let mut process = Command::new(std::env::current_exe().unwrap());
    let (_, module) = module_path!().split_once("::").unwrap();
    let test = format!("{module}::with_512_open_files");
    process.args(["--exact", &test, "--ignored", "--nocapture"]);
    process.env(PORT, receiver.addr().port().to_string());
    let output = tokio::task::spawn_blocking(move || process.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(receiver.posts() as usize, 2 * DESTINATIONS + 3);
}

/// Runs in a process of its own, since the limit applies to the process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above"]
async fn with_512_open_files() {
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let limit = Rlimit { current: Some(512), maximum: Some(512) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let names = NameServer::start(|_, _| Reply::Address([127, 0, 0, 1].into())).await;

    // All file descriptors are in use: a name can't even be looked up.
    let starved = sender(&names, usize::MAX);
    let url = format!("http://receiver.example:{port}/ok");
    let files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert_eq!(starved.sent(&url).await, Outcome::NotSent(LocalFailure::NoSocket));
    drop(files);
    let outcome = starved.sent(&url).await;
    assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    drop(starved);

    let bounded = sender(&names, max_kept(Some(512), settings().limits.max_in_flight));
    assert_eq!(call_all(&bounded, port).await, 0, "connections are closed before sockets run out");
    drop(bounded);

    let unbounded = sender(&names, usize::MAX);
    let began_at = Instant::now();
    assert!(call_all(&unbounded, port).await > 0, "there was no shortage of files");
    assert!(began_at.elapsed() < Duration::from_secs(15), "waited for idle connections");
    drop(unbounded);
}

/// Calls all destinations until each has answered, while one request hangs. Returns how often there was no
/// socket.
async fn call_all(sender: &Sender, port: u16) -> usize {
    let shortages = AtomicUsize::new(0);
    let hang = async {
        let outcome = sender.sent(&format!("http://127.0.0.1:{port}/hang/2")).await;
        assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    };
    let one = async |n: usize| {
        let [_, _, high, low] = (n as u32 + 2).to_be_bytes();
        let url = format!("http://{}:{port}/ok", IpAddr::from([127, 0, high, low]));
        loop {
            match sender.sent(&url).await {
                Outcome::Answered(Response { status: 200, .. }) => break,
                Outcome::NotSent(LocalFailure::NoSocket) => shortages.fetch_add(1, Ordering::Relaxed),
                outcome => panic!("{url}: {outcome:?}"),
            };
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let all = stream::iter(0..DESTINATIONS).for_each_concurrent(settings().limits.max_in_flight - 1, one);
    tokio::join!(hang, all);
    shortages.into_inner()
}

mod connections;
mod names;
mod tls;

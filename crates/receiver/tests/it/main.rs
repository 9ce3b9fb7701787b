//! The receiver as seen by a client, over HTTP.
#![allow(clippy::unwrap_used)] // the configured exemption covers test functions only, not their helpers

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use contracts::{SigningSecret, Timestamp, sign};
use receiver::{Options, Received, Receiver, Verdict};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const NOW: i64 = 1_700_000_000;
const BODY: &str = r#"{"event": "run.completed"}"#;

struct Setup {
    receiver: Receiver,
    received: UnboundedReceiver<Received>,
    client: reqwest::Client,
}

fn setup(secrets: Vec<SigningSecret>) -> Setup {
    _ = rustls::crypto::ring::default_provider().install_default();
    let (sink, received) = unbounded_channel();
    let now = Arc::new(|| Timestamp::from_micros(NOW * 1_000_000));
    let receiver = Receiver::bind(ANY_PORT, Options { secrets, sink: Some(sink), now }).unwrap();
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
    Setup { receiver, received, client: client.unwrap() }
}

impl Setup {
    fn request(&self, path: &str, webhook_id: &str) -> reqwest::RequestBuilder {
        self.client.post(self.receiver.url(path)).header("webhook-id", webhook_id)
    }

    async fn post(&self, path: &str, webhook_id: &str) -> Response {
        self.request(path, webhook_id).send().await.unwrap()
    }

    async fn status(&self, path: &str, webhook_id: &str) -> u16 {
        self.post(path, webhook_id).await.status().as_u16()
    }

    /// Posts `body` with the signatures of [`BODY`] and returns the receiver's verdict.
    async fn verdict(&mut self, secret: &SigningSecret, timestamp: i64, body: &'static str) -> Verdict {
        let signed = sign(secret, "id-1", timestamp, BODY.as_bytes());
        let request = self
            .request("/ok", "id-1")
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signed.webhook_signature)
            .header("Runflow-Signature", signed.runflow_signature);
        request.body(body).send().await.unwrap();
        self.received.recv().await.unwrap().verdict
    }
}

fn secret(fill: u8) -> SigningSecret {
    SigningSecret::from_key(&[fill; 32])
}

/// Sends a POST over a bare connection. Reading from it times out instead of blocking forever.
fn raw_post(receiver: &Receiver, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(receiver.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").unwrap();
    stream
}

#[tokio::test]
async fn a_post_is_passed_to_the_sink_unchanged() {
    let mut setup = setup(vec![]);
    let sent = setup.request("/ok?run=1", "id-1").header("X-Custom", "é").body("\0\u{1}body");
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::OK);

    let received = setup.received.recv().await.unwrap();
    assert_eq!(received.path, "/ok?run=1");
    assert_eq!(received.header("webhook-id"), Some("id-1"));
    assert_eq!(received.header("x-custom"), Some("é"));
    assert!(received.headers.is_sorted());
    assert_eq!(received.body, b"\0\x01body");
    assert_eq!(received.verdict, Verdict::Unsigned);
    assert_eq!(received.answered, Some(200));
    assert_eq!((setup.receiver.posts(), setup.receiver.invalid()), (1, 0));
}

#[tokio::test]
async fn signatures_are_checked_with_the_known_secrets() {
    let mut setup = setup(vec![]);
    assert_eq!(setup.verdict(&secret(1), NOW, BODY).await, Verdict::NoSecretKnown);

    setup.receiver.add_secret(secret(1));
    assert_eq!(setup.verdict(&secret(1), NOW, BODY).await, Verdict::Valid);
    assert!(matches!(setup.verdict(&secret(1), NOW, "tampered").await, Verdict::Invalid(_)));
    assert!(matches!(setup.verdict(&secret(1), NOW - 301, BODY).await, Verdict::Invalid(_)));
    assert!(matches!(setup.verdict(&secret(2), NOW, BODY).await, Verdict::Invalid(_)));
    assert_eq!((setup.receiver.posts(), setup.receiver.invalid()), (5, 3));

    setup.receiver.add_secret(secret(2));
    assert_eq!(setup.verdict(&secret(2), NOW, BODY).await, Verdict::Valid);
    assert_eq!(setup.verdict(&secret(1), NOW, BODY).await, Verdict::Valid);
}

#[tokio::test]
async fn each_path_answers_its_status() {
    let mut setup = setup(vec![]);
    for (path, status) in [
        ("/ok", 200),
        ("/status/204", 204),
        ("/status/500", 500),
        ("/redirect", 302),
        ("/gone", 410),
        ("/hang/0", 200),
        ("/drip/0", 200),
        ("/no-such-path", 404),
        ("/", 404),
    ] {
        assert_eq!(setup.status(path, "id-1").await, status, "{path}");
        assert_eq!(setup.received.recv().await.unwrap().answered, Some(status));
    }
}

#[tokio::test]
async fn only_post_counts_as_a_callback() {
    let setup = setup(vec![]);
    let help = setup.client.get(setup.receiver.url("/")).send().await.unwrap();
    assert_eq!(help.status(), StatusCode::OK);
    assert_eq!(help.text().await.unwrap(), receiver::HELP);
    let get = setup.client.get(setup.receiver.url("/ok")).send().await.unwrap();
    assert_eq!(get.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(setup.receiver.posts(), 0);
}

#[tokio::test]
async fn fail_first_counts_by_webhook_id() {
    let setup = setup(vec![]);
    for (webhook_id, status) in [("a", 503), ("a", 503), ("b", 503), ("a", 200), ("b", 503), ("b", 200)] {
        assert_eq!(setup.status("/fail-first/2", webhook_id).await, status, "{webhook_id}");
    }
}

#[tokio::test]
async fn retry_after_is_sent_once_per_webhook_id() {
    let setup = setup(vec![]);
    for webhook_id in ["a", "b"] {
        let first = setup.post("/retry-after/7", webhook_id).await;
        assert_eq!((first.status().as_u16(), &first.headers()["retry-after"]), (503, &"7".parse().unwrap()));
        let second = setup.post("/retry-after/7", webhook_id).await;
        assert_eq!((second.status().as_u16(), second.headers().get("retry-after")), (200, None));
    }
}

#[tokio::test]
async fn a_request_above_the_limit_of_at_once_is_answered_429() {
    let setup = setup(vec![]);
    let refused = setup.post("/at-once/0", "a").await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    for webhook_id in ["a", "b"] {
        assert_eq!(setup.status("/at-once/1", webhook_id).await, 200);
    }
}

#[tokio::test]
async fn a_redirect_points_to_ok() {
    assert_eq!(setup(vec![]).post("/redirect", "a").await.headers()["location"], "/ok");
}

#[tokio::test]
async fn a_large_body_has_the_requested_size() {
    let setup = setup(vec![]);
    for size in [0, 1, 65_536, 200_001] {
        let response = setup.post(&format!("/large/{size}"), "a").await;
        assert_eq!(response.content_length(), Some(size));
        assert_eq!(response.bytes().await.unwrap().len() as u64, size);
    }
}

#[tokio::test]
async fn a_dripping_body_follows_a_head_sent_at_once() {
    let setup = setup(vec![]);
    // The body would take an hour: a response proves that the head was sent before the body's end.
    let mut response = setup.post("/drip/3600", "a").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.chunk().await.unwrap().as_deref(), Some(b".".as_slice()));
    assert_eq!(response.chunk().await.unwrap().as_deref(), Some(b".".as_slice()));
}

#[tokio::test]
async fn reset_closes_the_connection_without_an_answer() {
    let mut setup = setup(vec![]);
    let mut stream = raw_post(&setup.receiver, "/reset");
    assert_eq!(setup.received.recv().await.unwrap().answered, None);
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "closed without a head");
    assert!(setup.request("/reset", "a").send().await.is_err());
}

#[tokio::test]
async fn a_hanging_response_ends_when_its_client_disconnects() {
    let mut setup = setup(vec![]);
    let mut stream = raw_post(&setup.receiver, "/hang/3600");
    setup.received.recv().await.unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "the server closes its side");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_aborts_hanging_responses_and_frees_the_port() {
    let mut setup = setup(vec![]);
    let addr = setup.receiver.addr();
    let hanging = tokio::spawn(setup.request("/hang/3600", "a").send());
    setup.received.recv().await.unwrap();
    setup.receiver.stop().await;
    assert!(hanging.await.unwrap().is_err());
    Receiver::bind(addr, Options::default()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_receiver_aborts_hanging_responses() {
    let mut setup = setup(vec![]);
    let hanging = tokio::spawn(setup.request("/hang/3600", "a").send());
    setup.received.recv().await.unwrap();
    drop(setup.receiver);
    assert!(hanging.await.unwrap().is_err());
    assert!(setup.received.recv().await.is_none(), "the sink is closed");
}

#[tokio::test]
async fn without_a_sink_it_counts_and_still_verifies() {
    let Setup { receiver: _with_sink, received, client } = setup(vec![]);
    let receiver =
        Receiver::bind(ANY_PORT, Options { secrets: vec![secret(1)], ..Default::default() }).unwrap();
    let request = client.post(receiver.url("/ok")).header("Runflow-Signature", "00").body(BODY);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!((receiver.posts(), receiver.invalid()), (1, 1));
    assert!(received.is_empty());
}

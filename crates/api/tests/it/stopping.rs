//! Graceful shutdown.

use std::time::Duration;

use testkit::{Backend, OnBackend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{RUN, TestApi};

testkit::on_both_backends!(a_request_in_flight_is_answered_before_the_server_returns);

async fn a_request_in_flight_is_answered_before_the_server_returns(mut api: TestApi) {
    let body = r#"{"status_code": "queued"}"#;
    let mut stream = TcpStream::connect(api.addr).await.unwrap();
    let head = format!(
        "PUT /v1/runs/{RUN} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
        Content-Type: application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        api.token,
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).await.unwrap(); // the server has read the head
    assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
    api.shutdown.cancel();
    while TcpStream::connect(api.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    (&mut api.server).await.unwrap().unwrap();
}

/// Idle connections could delay a shutdown for the whole grace period of requests in flight.
#[tokio::test]
async fn idle_connections_are_closed_at_once() {
    let mut api = TestApi::on(Backend::Sqlite).await;
    assert_eq!(api.get("/v1/health").await.status, 200); // the client keeps its connection
    api.shutdown.cancel();
    let stopped = timeout(Duration::from_secs(4), &mut api.server).await;
    stopped.expect("not stopped before the grace period of five seconds").unwrap().unwrap();
}

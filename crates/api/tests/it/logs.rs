//! The access log.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::Value;
use testkit::{Backend, OnBackend};

use crate::harness::{RUN, TestApi, send};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_request_logs_one_line_without_its_token() {
    let captured = Captured::default();
    let writer = Captured(captured.0.clone());
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let api = TestApi::on(Backend::Sqlite).await;
    let get =
        api.request(Method::GET, &format!("/v1/runs/{RUN}?secret=1")).header("x-request-id", "log-test");
    assert_eq!(send(get).await.status, 422);
    api.shutdown.cancel();

    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["fields"]["request_id"] == "log-test")
        .map(|mut line| line["fields"].take())
        .collect();
    let [line] = &ours[..] else { panic!("{ours:?}") };
    assert_eq!(line["message"], "request");
    assert_eq!(line["method"], "GET");
    assert_eq!(line["route"], "/v1/runs/{run_id}");
    assert_eq!(line["status"], 422);
    assert_eq!(line["org_id"], api.org.to_string());
    assert!(line["duration_us"].is_u64());
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line.as_object().unwrap().len(), 8);
    assert!(!log.contains(&api.token) && !log.contains("secret=1"));
}

use reqwest::Method;

use crate::harness::{TestApi, on_both_engines, send};

on_both_engines!(health_is_answered_to_anyone);

async fn health_is_answered_to_anyone(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/v1/health")).await;
    assert_eq!((reply.status, &*reply.text), (200, r#"{"status":"ok"}"#));
}

use reqwest::Method;

use crate::harness::{TestApi, on_both_engines, send};

on_both_engines!(health_is_answered_to_anyone, who_asks_whether_it_is_ready_is_told_so);

async fn health_is_answered_to_anyone(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/v1/health")).await;
    assert_eq!((reply.status, &*reply.text), (200, r#"{"status":"ok"}"#));
}

async fn who_asks_whether_it_is_ready_is_told_so(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/health/ready")).await;
    assert_eq!((reply.status, &*reply.text), (200, r#"{"status":"ready"}"#));
}

use reqwest::Method;

use crate::harness::{TestApi, send};

testkit::on_both_backends!(health_needs_no_token, readiness_needs_no_token);

async fn health_needs_no_token(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/v1/health")).await;
    assert_eq!((reply.status, &*reply.text), (200, r#"{"status":"ok"}"#));
}

async fn readiness_needs_no_token(api: TestApi) {
    let reply = send(api.bare(Method::GET, "/health/ready")).await;
    assert_eq!((reply.status, &*reply.text), (200, r#"{"status":"ready"}"#));
}

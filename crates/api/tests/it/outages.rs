//! When the database is away, or holds what can't be shown.

use contracts::{Delivery, DeliveryStatus};
use reqwest::Method;
use testkit::Engine;

use crate::harness::{SUCCEEDED, TestApi, on_both_engines, redeliveries, send};

on_both_engines!(an_internal_error_says_nothing_of_its_cause);

/// PostgreSQL only: an open SQLite file doesn't go away.
#[tokio::test]
async fn without_its_database_the_api_asks_to_come_again() {
    let mut api = TestApi::start(Engine::Postgres).await;
    assert_eq!(api.put_run(SUCCEEDED).await.status, 201);
    api.doorbell().await;
    api.lose_database();
    let known = api.token.clone();
    for token in [known, format!("rf_live_{}", "0".repeat(64))] {
        let request = api.bare(Method::POST, &redeliveries(crate::harness::RUN)).bearer_auth(token);
        let reply = send(request).await;
        assert_eq!(reply.error(), (503, "SERVICE_UNAVAILABLE".into()));
        assert_eq!(reply.header("retry-after"), "2");
        assert_eq!(reply.json()["message"], "the service is temporarily unavailable");
    }
    assert_eq!(api.get("/v1/health").await.status, 200);
}

async fn an_internal_error_says_nothing_of_its_cause(mut api: TestApi) {
    api.delivered_run().await;
    let delivery = api.record().await.1.remove(0);
    let broken = Delivery {
        id: contracts::DeliveryId::new(api.clock.now()),
        payload_bytes: "no JSON".into(),
        status_code: DeliveryStatus::Pending,
        is_automatic: false,
        next_attempt_at: Some(api.clock.now()),
        ..delivery
    };
    let (id, org) = (broken.id, api.org);
    let insert =
        move |tx: &mut _, _| store::insert_delivery(tx, org, &broken, "r").map_err(store::StoreError::from);
    api.store.write(insert).await.unwrap();
    let reply = api.get(&format!("/v1/callback-deliveries/{id}")).await;
    assert_eq!(reply.status, 500);
    assert_eq!(reply.text, r#"{"code":"INTERNAL_ERROR","message":"internal error","errors":null}"#);
}

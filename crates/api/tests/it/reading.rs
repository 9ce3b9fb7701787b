//! Representation of deliveries and their attempts.

use std::time::Duration;

use engine::Settlement;
use uuid::Uuid;

use crate::harness::{RUN, SUCCEEDED, TestApi};

testkit::on_both_backends!(
    a_delivery_is_shown_with_its_attempts_ascending,
    a_runs_deliveries_are_listed_newest_first,
    an_unknown_or_foreign_delivery_is_not_found,
);

async fn a_delivery_is_shown_with_its_attempts_ascending(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let mut job = api.doorbell().await;
    api.claim(&job).await;
    let retry = api.clock.now() + Duration::from_secs(10);
    api.finish(&job, Some(503), Settlement::RetryAt(retry)).await;
    api.clock.advance(Duration::from_secs(11));
    job.attempt = 2;
    api.claim(&job).await;
    api.finish(&job, None, Settlement::Succeeded).await;

    let reply = api.get(&format!("/v1/callback-deliveries/{}", job.delivery_id)).await;
    assert_eq!(reply.status, 200);
    let shown = reply.json();
    let attempts: Vec<&str> = (0..2).map(|i| shown["attempts"][i]["id"].as_str().unwrap()).collect();
    let hide: [(&str, &dyn std::fmt::Display); 3] =
        [("id", &job.delivery_id), ("first", &attempts[0]), ("second", &attempts[1])];
    insta::assert_snapshot!("delivery_with_attempts", reply.shown(&hide));
}

async fn a_runs_deliveries_are_listed_newest_first(mut api: TestApi) {
    api.delivered_run().await;
    api.clock.advance(Duration::from_millis(1));
    let second = api.redeliver().await;
    api.doorbell().await;
    let list = api.get(&format!("/v1/runs/{RUN}/callback")).await;
    assert_eq!(list.status, 200);
    assert!(list.text.starts_with(&format!("[{},{{", second.text)), "{}", list.text);
    assert_eq!(list.json().as_array().unwrap().len(), 2);
}

async fn an_unknown_or_foreign_delivery_is_not_found(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let id = api.doorbell().await.delivery_id;
    let not_found = (404, "CALLBACK_DELIVERY_NOT_FOUND".into());
    assert_eq!(api.get(&format!("/v1/callback-deliveries/{}", Uuid::from_u128(1))).await.error(), not_found);
    api.token = api.another_organization().await.1;
    assert_eq!(api.get(&format!("/v1/callback-deliveries/{id}")).await.error(), not_found);
}

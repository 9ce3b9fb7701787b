//! Repeated requests, and redeliveries that supersede a waiting delivery.

use std::time::Duration;

use engine::Settlement;
use futures_util::future::join_all;
use reqwest::Method;

use crate::harness::{RUN, Reply, SUCCEEDED, TestApi, redeliveries, send};

testkit::on_both_backends!(
    a_repeated_request_gets_the_same_response_and_no_second_doorbell,
    a_key_is_bound_to_method_path_query_and_body,
    a_refused_request_leaves_its_key_free,
    a_malformed_key_is_refused,
    concurrent_requests_with_one_key_are_accepted_once_and_answered_alike,
    a_waiting_delivery_makes_way_when_asked,
    supersede_must_be_true_or_false,
);

async fn keyed(api: &TestApi, key: &str, path: &str, body: &'static str) -> Reply {
    let request = api.request(Method::POST, path).header("content-type", "application/json");
    send(request.header("idempotency-key", key).body(body)).await
}

async fn a_repeated_request_gets_the_same_response_and_no_second_doorbell(mut api: TestApi) {
    api.delivered_run().await;
    let first = keyed(&api, "k", &redeliveries(RUN), "").await;
    assert_eq!(first.status, 201);
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.clock.advance(Duration::from_secs(1));
    api.finish(&job, None, Settlement::Succeeded).await;
    let again = keyed(&api, "k", &redeliveries(RUN), "").await;
    assert_eq!((again.status, &again.text), (201, &first.text));
    assert_ne!(again.header("x-request-id"), first.header("x-request-id"));
    assert_eq!(api.record().await.1.len(), 2);
    api.clock.advance(Duration::from_secs(24 * 3600));
    assert_ne!(keyed(&api, "k", &redeliveries(RUN), "").await.id(), first.id());
    api.doorbell().await;
}

async fn a_key_is_bound_to_method_path_query_and_body(mut api: TestApi) {
    api.delivered_run().await;
    let first = keyed(&api, "k", &redeliveries(RUN), "").await;
    assert_eq!(first.status, 201);
    api.doorbell().await;
    let before = api.record().await;
    for (path, body) in [
        (redeliveries("3c90c3cc-0d44-4b50-8888-8dd25736052b"), ""),
        (format!("{}?supersede=false", redeliveries(RUN)), ""),
        (redeliveries(RUN), "{}"),
        ("/v1/callback-secrets".to_owned(), ""),
    ] {
        let reused = keyed(&api, "k", &path, body).await;
        assert_eq!(reused.error(), (409, "CONFLICT".into()), "{path} {body}");
    }
    assert_eq!(api.record().await, before);
    // Keys are separate per organization.
    api.token = api.another_organization().await.1;
    assert_eq!(keyed(&api, "k", &redeliveries(RUN), "").await.error(), (404, "RUN_NOT_FOUND".into()));
    assert_eq!(keyed(&api, "k", "/v1/callback-secrets", "").await.status, 201);
}

async fn a_refused_request_leaves_its_key_free(mut api: TestApi) {
    assert_eq!(keyed(&api, "k", &redeliveries(RUN), "").await.status, 404);
    api.put_run(SUCCEEDED).await;
    assert_eq!(keyed(&api, "k", &redeliveries(RUN), "").await.invalid(), ["path.run_id conflict"]);
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, None, Settlement::Succeeded).await;
    assert_eq!(keyed(&api, "k", &redeliveries(RUN), "").await.status, 201);
    api.doorbell().await;
}

async fn a_malformed_key_is_refused(mut api: TestApi) {
    api.delivered_run().await;
    let expected = ["header.idempotency-key idempotency_key_invalid"];
    for key in ["", " ", "two words", "é", &"x".repeat(256)] {
        assert_eq!(keyed(&api, key, &redeliveries(RUN), "").await.invalid(), expected, "{key}");
    }
    let twice = api.request(Method::POST, &redeliveries(RUN));
    let twice = twice.header("idempotency-key", "a").header("idempotency-key", "b");
    assert_eq!(send(twice).await.invalid(), expected);
    assert_eq!(keyed(&api, &"~".repeat(255), &redeliveries(RUN), "").await.status, 201);
    api.doorbell().await;
}

async fn concurrent_requests_with_one_key_are_accepted_once_and_answered_alike(mut api: TestApi) {
    api.delivered_run().await;
    let path = redeliveries(RUN);
    let replies = join_all((0..50).map(|_| keyed(&api, "k", &path, ""))).await;
    for reply in &replies {
        assert_eq!((reply.status, &reply.text), (201, &replies[0].text));
    }
    api.doorbell().await;
    assert_eq!(api.record().await.1.len(), 2);
}

async fn a_waiting_delivery_makes_way_when_asked(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let path = format!("{}?supersede=true", redeliveries(RUN));
    // Neither a new delivery nor one being sent can be superseded.
    assert_eq!(api.post(&path, "").await.invalid(), ["path.run_id conflict"]);
    let job = api.doorbell().await;
    api.claim(&job).await;
    assert_eq!(api.post(&path, "").await.invalid(), ["path.run_id conflict"]);
    api.finish(&job, Some(500), Settlement::RetryAt(api.clock.now() + Duration::from_secs(10))).await;
    assert_eq!(api.redeliver().await.invalid(), ["path.run_id conflict"]);
    api.clock.advance(Duration::from_secs(1));
    let replies = join_all((0..16).map(|_| api.post(&path, ""))).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
    assert_eq!((accepted.len(), refused.len()), (1, 15));
    for refusal in refused {
        assert_eq!(refusal.invalid(), ["path.run_id conflict"]);
    }
    assert_eq!(api.doorbell().await.delivery_id, accepted[0].id());
    let ended = api.get(&format!("/v1/callback-deliveries/{}", job.delivery_id)).await;
    insta::assert_snapshot!(
        "delivery_superseded",
        ended.shown(&[("id", &job.delivery_id), ("attempt", &ended.json()["attempts"][0]["id"])])
    );
}

async fn supersede_must_be_true_or_false(api: TestApi) {
    for (query, expected) in [
        ("supersede=yes", "query.supersede bool_parsing"),
        ("supersede", "query.supersede bool_parsing"),
        ("supersede=true&supersede=true", "query.supersede duplicate"),
    ] {
        let reply = api.post(&format!("{}?{query}", redeliveries(RUN)), "").await;
        assert_eq!(reply.invalid(), [expected], "{query}");
    }
    let reply = api.post(&format!("{}?supersede=false", redeliveries(RUN)), "").await;
    assert_eq!(reply.error(), (404, "RUN_NOT_FOUND".into()));
}

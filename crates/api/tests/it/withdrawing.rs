//! Withdrawal of waiting deliveries.

use std::time::Duration;

use contracts::{Scope, Scopes};
use engine::Settlement;
use futures_util::future::join_all;
use reqwest::Method;
use uuid::Uuid;

use crate::harness::{Reply, SUCCEEDED, TestApi, send};

testkit::on_both_backends!(
    a_waiting_delivery_ends_as_withdrawn_and_repeating_it_is_answered_alike,
    a_withdrawn_delivery_frees_its_run_for_another_one,
    a_delivery_that_is_being_sent_or_has_ended_otherwise_is_a_conflict,
    a_foreign_delivery_looks_exactly_like_an_unknown_one,
    withdrawing_takes_neither_query_nor_body_and_needs_its_scope,
    a_repeated_withdrawal_with_its_key_gets_the_same_response,
    concurrent_withdrawals_are_answered_alike,
);

fn path(id: impl std::fmt::Display) -> String {
    format!("/v1/callback-deliveries/{id}/withdraw")
}

async fn keyed(api: &TestApi, key: &str, path: &str, body: &'static str) -> Reply {
    let request = api.request(Method::POST, path).header("content-type", "application/json");
    send(request.header("idempotency-key", key).body(body)).await
}

async fn a_waiting_delivery_ends_as_withdrawn_and_repeating_it_is_answered_alike(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, Some(503), Settlement::RetryAt(api.clock.now() + Duration::from_secs(10))).await;
    api.clock.advance(Duration::from_secs(1));
    let withdrawn = api.post(&path(job.delivery_id), "").await;
    assert_eq!(withdrawn.status, 200);
    let hide: [(&str, &dyn std::fmt::Display); 2] =
        [("id", &job.delivery_id), ("attempt", &withdrawn.json()["attempts"][0]["id"])];
    insta::assert_snapshot!("delivery_withdrawn", withdrawn.shown(&hide));
    api.clock.advance(Duration::from_secs(1));
    let again = api.post(&path(job.delivery_id), "{}").await;
    assert_eq!((again.status, &again.text), (200, &withdrawn.text));
    let shown = api.get(&format!("/v1/callback-deliveries/{}", job.delivery_id)).await;
    assert_eq!(shown.text, withdrawn.text);
    let found = api.get("/v1/callback-deliveries?failure_reason_code=withdrawn").await;
    assert_eq!(found.json()["items"][0]["id"], job.delivery_id.to_string());
}

async fn a_withdrawn_delivery_frees_its_run_for_another_one(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    assert_eq!(api.redeliver().await.invalid(), ["path.run_id conflict"]);
    assert_eq!(api.post(&path(job.delivery_id), "").await.status, 200, "it was never tried");
    let accepted = api.redeliver().await;
    assert_eq!(accepted.status, 201);
    assert_eq!(api.doorbell().await.delivery_id, accepted.id());
}

async fn a_delivery_that_is_being_sent_or_has_ended_otherwise_is_a_conflict(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    let refused = async |why: &str| {
        let before = api.record().await;
        let refused = api.post(&path(job.delivery_id), "").await;
        let expected =
            format!(r#"{{"code":"CONFLICT","message":"the delivery does not wait: {why}","errors":null}}"#);
        assert_eq!((refused.status, refused.text), (409, expected));
        assert_eq!(api.record().await, before);
    };
    refused("it is being sent at this moment").await;
    api.finish(&job, Some(500), Settlement::Failed).await;
    refused("it has ended as failed").await;
    let mut job = job.clone();
    job.delivery_id = api.redeliver().await.id();
    api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, None, Settlement::Succeeded).await;
    let refused = api.post(&path(job.delivery_id), "").await;
    assert_eq!(refused.error(), (409, "CONFLICT".into()));
    assert_eq!(refused.json()["message"], "the delivery does not wait: it has ended as succeeded");
}

async fn a_foreign_delivery_looks_exactly_like_an_unknown_one(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let id = api.doorbell().await.delivery_id;
    let before = api.record().await;
    let (_, stranger) = api.another_organization().await;
    let call = async |id: Uuid| {
        let request = api.bare(Method::POST, &path(id)).bearer_auth(&stranger).header("x-request-id", "same");
        let mut reply = send(request).await;
        reply.headers.remove("date");
        reply
    };
    let foreign = call(id.0).await;
    assert_eq!(foreign.error(), (404, "CALLBACK_DELIVERY_NOT_FOUND".into()));
    assert_eq!(foreign, call(Uuid::from_u128(1)).await);
    assert_eq!(api.record().await, before);
}

async fn withdrawing_takes_neither_query_nor_body_and_needs_its_scope(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let id = api.doorbell().await.delivery_id;
    let before = api.record().await;
    let with_query = format!("{}?fields=id", path(id));
    assert_eq!(api.post(&with_query, "").await.invalid(), ["query.fields extra_forbidden"]);
    assert_eq!(api.post(&path(id), r#"{"why": 1}"#).await.invalid(), ["body.why extra_forbidden"]);
    assert_eq!(api.post(&path(id), "[]").await.invalid(), ["body object_type"]);
    assert_eq!(api.post(&path(7), "").await.invalid(), ["path.id uuid_parsing"]);
    let all = std::mem::take(&mut api.token);
    api.token = api.token(Scopes::Named(vec![Scope::RunsRead, Scope::RunsCreate])).await;
    assert_eq!(api.post(&path(id), "").await.error(), (403, "PERMISSION_DENIED".into()));
    api.token = api.token(Scopes::Named(vec![Scope::RunsExecute])).await;
    let mine = std::mem::replace(&mut api.token, all);
    assert_eq!(api.record().await, before);
    api.token = mine;
    assert_eq!(api.post(&path(id), "").await.status, 200);
}

async fn a_repeated_withdrawal_with_its_key_gets_the_same_response(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    assert_eq!(keyed(&api, "k", &path(job.delivery_id), "").await.error(), (409, "CONFLICT".into()));
    api.finish(&job, Some(500), Settlement::RetryAt(api.clock.now())).await;
    let first = keyed(&api, "k", &path(job.delivery_id), "").await;
    assert_eq!(first.status, 200, "a refusal leaves the key free");
    api.clock.advance(Duration::from_secs(1));
    let again = keyed(&api, "k", &path(job.delivery_id), "").await;
    assert_eq!((again.status, &again.text), (200, &first.text));
    let other = api.redeliver().await.id();
    api.doorbell().await;
    for (path, body) in [(path(job.delivery_id), "{}"), (path(other), "")] {
        let reused = keyed(&api, "k", &path, body).await;
        assert_eq!(reused.error(), (409, "CONFLICT".into()));
        assert_eq!(reused.json()["message"], "the idempotency key was used for another request");
    }
    let still_waits = api.get(&format!("/v1/callback-deliveries/{other}")).await;
    assert_eq!(still_waits.json()["status_code"], "pending");
}

async fn concurrent_withdrawals_are_answered_alike(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let path = path(api.doorbell().await.delivery_id);
    let replies = join_all((0..32).map(|_| api.post(&path, ""))).await;
    for reply in &replies {
        assert_eq!((reply.status, &reply.text), (200, &replies[0].text));
    }
}

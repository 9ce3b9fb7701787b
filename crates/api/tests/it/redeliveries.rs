//! Redelivery of a run's callback.

use std::time::Duration;

use contracts::Destination;
use engine::Settlement;
use futures_util::future::join_all;
use reqwest::Method;
use uuid::Uuid;

use crate::harness::{RUN, SUCCEEDED, TestApi, redeliveries, send};

testkit::on_both_backends!(
    a_redelivery_is_answered_with_a_delivery_of_the_runs_current_state,
    a_redelivery_is_signed_with_the_current_secret,
    a_redelivery_is_committed_before_its_doorbell_rings,
    the_body_may_be_empty_or_an_empty_object,
    any_other_body_is_refused_and_changes_nothing,
    a_foreign_run_looks_exactly_like_an_unknown_one,
    a_run_that_has_not_ended_is_refused,
    a_run_without_url_is_refused,
    a_delivery_in_flight_is_named_in_the_conflict,
    exactly_one_of_many_concurrent_redeliveries_is_accepted,
);

async fn a_redelivery_is_answered_with_a_delivery_of_the_runs_current_state(mut api: TestApi) {
    api.delivered_run().await;
    api.clock.advance(Duration::from_secs(5));
    api.put_run(r#"{"status_code": "succeeded", "output": {"url": "https://cdn.example/é"}}"#).await;
    let accepted = api.redeliver().await;
    assert_eq!(accepted.status, 201);
    insta::assert_snapshot!("redelivery_accepted", accepted.shown(&[("id", &accepted.id())]));
    let job = api.doorbell().await;
    assert_eq!((job.delivery_id, job.attempt, job.org_id), (accepted.id(), 1, api.org));
    assert_eq!(job.destination, Destination::of(api.org, "https://example.com:443/"));
    assert_eq!(job.payload_size, accepted.json()["payload_bytes"].as_str().map(|text| text.len() as u64));
    assert_eq!(job.request_id, accepted.header("x-request-id"));
    assert_eq!(api.get(&format!("/v1/callback-deliveries/{}", accepted.id())).await.text, accepted.text);
}

async fn a_redelivery_is_signed_with_the_current_secret(mut api: TestApi) {
    api.delivered_run().await;
    let secret = api.post("/v1/callback-secrets", "").await;
    let accepted = api.redeliver().await;
    assert_eq!(accepted.json()["signing_secret_id"], secret.json()["id"]);
    api.doorbell().await;
}

async fn a_redelivery_is_committed_before_its_doorbell_rings(mut api: TestApi) {
    api.delivered_run().await;
    let (store, org) = (api.store.clone(), api.org);
    let request = api.request(Method::POST, &redeliveries(RUN));
    let (accepted, committed) = tokio::join!(send(request), async {
        let id = api.doorbell().await.delivery_id;
        store.read(move |tx| store::find_delivery(tx, org, id, store::DeliveryParts::ALL)).await.unwrap()
    });
    assert_eq!(committed.map(|delivery| delivery.id), Some(accepted.id()));
}

async fn the_body_may_be_empty_or_an_empty_object(mut api: TestApi) {
    api.delivered_run().await;
    for body in ["", "{}", "\r\n{ \t}\n", " "] {
        assert_eq!(api.post(&redeliveries(RUN), body).await.status, 201, "{body:?}");
        let job = api.doorbell().await;
        api.claim(&job).await;
        api.finish(&job, None, Settlement::Succeeded).await;
    }
}

async fn any_other_body_is_refused_and_changes_nothing(mut api: TestApi) {
    api.delivered_run().await;
    let before = api.record().await;
    for (body, expected) in [
        ("{", &["body.1 json_invalid"][..]),
        ("{}{}", &["body.2 json_invalid"]),
        ("[]", &["body object_type"]),
        ("null", &["body object_type"]),
        (r#"{"supersede": true, "a": 1}"#, &["body.supersede extra_forbidden", "body.a extra_forbidden"]),
    ] {
        assert_eq!(api.post(&redeliveries(RUN), body).await.invalid(), expected, "{body}");
    }
    assert_eq!(api.record().await, before);
}

async fn a_foreign_run_looks_exactly_like_an_unknown_one(mut api: TestApi) {
    api.delivered_run().await;
    let before = api.record().await;
    let (_, stranger) = api.another_organization().await;
    for (method, of_run) in
        [(Method::POST, "/callback-redeliveries"), (Method::GET, "/callback"), (Method::GET, "")]
    {
        let call = async |run: &str| {
            let path = format!("/v1/runs/{run}{of_run}");
            let request =
                api.bare(method.clone(), &path).bearer_auth(&stranger).header("x-request-id", "same");
            let mut reply = send(request).await;
            reply.headers.remove("date");
            reply
        };
        let foreign = call(RUN).await;
        assert_eq!(foreign.text, r#"{"code":"RUN_NOT_FOUND","message":"run not found","errors":null}"#);
        assert_eq!(foreign, call(&Uuid::from_u128(1).to_string()).await);
    }
    assert_eq!(api.record().await, before);
}

async fn a_run_that_has_not_ended_is_refused(api: TestApi) {
    api.put_run(r#"{"status_code": "dispatching", "callback_url": "https://example.com/"}"#).await;
    let before = api.record().await;
    let refused = api.redeliver().await;
    assert_eq!(refused.status, 422);
    insta::assert_snapshot!("redelivery_of_a_run_not_terminal", refused.shown(&[]));
    assert_eq!(api.record().await, before);
}

async fn a_run_without_url_is_refused(api: TestApi) {
    api.put_run(r#"{"status_code": "failed"}"#).await;
    let before = api.record().await;
    assert_eq!(api.redeliver().await.invalid(), ["path.run_id callback_url_missing"]);
    assert_eq!(api.record().await, before);
}

/// A new delivery, one being sent, and one waiting for its retry.
async fn a_delivery_in_flight_is_named_in_the_conflict(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    let in_flight = async |next: Option<&str>| {
        let before = api.record().await;
        let refused = api.redeliver().await;
        assert_eq!(refused.invalid(), ["path.run_id conflict"]);
        let error = &refused.json()["errors"][0];
        assert_eq!(error["delivery_id"], job.delivery_id.to_string());
        assert_eq!(error["next_attempt_at"].as_str(), next);
        assert!(error.as_object().unwrap().contains_key("next_attempt_at"));
        assert_eq!(api.record().await, before);
        refused
    };
    let refused = in_flight(Some("2026-01-02T03:04:05.678000Z")).await;
    insta::assert_snapshot!("redelivery_in_conflict", refused.shown(&[("id", &job.delivery_id)]));
    api.claim(&job).await;
    in_flight(None).await;
    let retry = api.clock.now() + Duration::from_secs(10);
    api.finish(&job, Some(500), Settlement::RetryAt(retry)).await;
    in_flight(Some("2026-01-02T03:04:15.678000Z")).await;
}

async fn exactly_one_of_many_concurrent_redeliveries_is_accepted(mut api: TestApi) {
    api.delivered_run().await;
    let replies = join_all((0..64).map(|_| api.redeliver())).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
    assert_eq!((accepted.len(), refused.len()), (1, 63));
    let winner = accepted[0].id();
    for refusal in refused {
        assert_eq!(refusal.invalid(), ["path.run_id conflict"]);
        assert_eq!(refusal.json()["errors"][0]["delivery_id"], winner.to_string());
    }
    assert_eq!(api.doorbell().await.delivery_id, winner);
    assert_eq!(api.record().await.1.len(), 2);
}

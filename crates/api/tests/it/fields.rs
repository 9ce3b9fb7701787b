//! `?fields=`: selection of an item's keys.

use std::time::Duration;

use engine::Settlement;
use serde_json::{Value, json};

use crate::harness::{RUN, SUCCEEDED, TestApi};

testkit::on_both_backends!(
    every_key_can_be_selected_alone_and_all_of_them_give_the_whole_item,
    keys_are_shown_in_their_usual_order_whatever_the_order_of_fields,
    the_timing_of_attempts_is_shown_only_if_selected,
    all_lists_accept_fields_and_their_cursors_stay_the_same,
    fields_must_be_a_list_of_known_keys,
    a_payload_that_is_not_selected_is_not_read,
);

const DELIVERY: [&str; 17] = [
    "id",
    "run_id",
    "callback_url",
    "payload_bytes",
    "payload",
    "signing_secret_id",
    "is_automatic",
    "status_code",
    "failure_reason_code",
    "failure_detail",
    "attempt_count",
    "max_attempts",
    "next_attempt_at",
    "created_at",
    "updated_at",
    "completed_at",
    "attempts",
];

/// Returns the path of a delivery with one attempt that waits for its retry.
async fn tried_delivery(api: &mut TestApi) -> String {
    api.put_run(SUCCEEDED).await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, Some(503), Settlement::RetryAt(api.clock.now() + Duration::from_secs(10))).await;
    format!("/v1/callback-deliveries/{}", job.delivery_id)
}

async fn every_key_can_be_selected_alone_and_all_of_them_give_the_whole_item(mut api: TestApi) {
    let path = tried_delivery(&mut api).await;
    let whole = api.get(&path).await;
    assert_eq!(whole.json().as_object().unwrap().len(), DELIVERY.len());
    for key in DELIVERY {
        let alone = api.get(&format!("{path}?fields={key}")).await;
        assert_eq!(alone.json(), json!({key: whole.json()[key]}));
    }
    let all = api.get(&format!("{path}?fields={}", DELIVERY.join(","))).await;
    assert_eq!(all.text, whole.text);
}

async fn keys_are_shown_in_their_usual_order_whatever_the_order_of_fields(mut api: TestApi) {
    let path = tried_delivery(&mut api).await;
    let shown = api.get(&format!("{path}?fields=max_attempts,attempt_count,status_code")).await;
    assert_eq!(shown.text, r#"{"status_code":"pending","attempt_count":1,"max_attempts":8}"#);
}

async fn the_timing_of_attempts_is_shown_only_if_selected(mut api: TestApi) {
    let path = tried_delivery(&mut api).await;
    let usual = api.get(&path).await.json()["attempts"][0].clone();
    let usual_keys = usual.as_object().unwrap().len();
    assert_eq!(api.get(&format!("{path}?fields=attempts")).await.json(), json!({"attempts": [usual]}));
    let timing = json!({"resolve": null, "connect": null, "tls": null, "send": null, "wait": 11, "body": null,
        "remote_address": null, "content_type": null, "headers": null});
    let whole = format!("{},attempts.timing", DELIVERY.join(","));
    for fields in ["attempts.timing", "attempts,attempts.timing", "attempts.timing,attempts", &whole] {
        let shown = api.get(&format!("{path}?fields={fields}")).await.json();
        let Value::Object(attempt) = shown["attempts"][0].clone() else { panic!("{fields}: {shown}") };
        assert_eq!((attempt.len(), &attempt["timing"]), (usual_keys + 1, &timing), "{fields}");
    }
    let whole = api.get(&format!("{path}?fields={whole}")).await;
    assert!(whole.text.contains(r#"Z","timing":{"resolve":null,"connect":null"#), "timing is the last key");
}

async fn all_lists_accept_fields_and_their_cursors_stay_the_same(mut api: TestApi) {
    api.delivered_run().await;
    api.clock.advance(Duration::from_millis(1));
    let second = api.redeliver().await;
    api.doorbell().await;
    let list = "/v1/callback-deliveries?limit=1";
    let (whole, page) =
        (api.get(list).await.json(), api.get(&format!("{list}&fields=is_automatic,id")).await);
    assert!(
        page.text.starts_with(&format!(r#"{{"items":[{{"id":"{}","is_automatic":false}}],"#, second.id()))
    );
    for cursor in ["first", "next", "previous"] {
        assert_eq!(page.json()[cursor], whole[cursor]);
    }
    let next = page.json()["next"].as_str().unwrap().to_owned();
    let next = api.get(&format!("{list}&fields=is_automatic&pq={next}")).await;
    assert_eq!(next.json()["items"], json!([{"is_automatic": true}]));

    let of_run =
        api.get(&format!("/v1/runs/{RUN}/callback?fields=is_automatic,attempts.timing")).await.json();
    assert_eq!(of_run[0], json!({"is_automatic": false, "attempts": []}));
    assert_eq!(of_run[1]["attempts"][0]["timing"]["wait"], 11);

    let runs = api.get("/v1/runs?fields=status_code,metadata").await;
    assert_eq!(runs.json()["items"], json!([{"status_code": "succeeded", "metadata": {"order": 17}}]));
    api.post("/v1/callback-secrets", r#"{"label": "a"}"#).await;
    let secrets = api.get("/v1/callback-secrets?fields=label,is_current").await;
    assert_eq!(secrets.json()["items"], json!([{"label": "a", "is_current": true}]));
}

async fn fields_must_be_a_list_of_known_keys(mut api: TestApi) {
    let path = tried_delivery(&mut api).await;
    for (fields, expected) in [
        ("fields=", "query.fields enum"),
        ("fields", "query.fields enum"),
        ("fields=id,", "query.fields enum"),
        ("fields=id,colour", "query.fields enum"),
        ("fields=ID", "query.fields enum"),
        ("fields=id,%20run_id", "query.fields enum"),
        ("fields=timing", "query.fields enum"),
        ("fields=attempts.id", "query.fields enum"),
        ("fields=id,run_id,id", "query.fields duplicate"),
        ("fields=id&fields=run_id", "query.fields duplicate"),
    ] {
        for path in [&path, "/v1/callback-deliveries", &format!("/v1/runs/{RUN}/callback")] {
            assert_eq!(api.get(&format!("{path}?{fields}")).await.invalid(), [expected], "{path}?{fields}");
        }
    }
    let msg = |reply: crate::harness::Reply| reply.json()["errors"][0]["msg"].as_str().unwrap().to_owned();
    let unknown = msg(api.get(&format!("{path}?fields=id,colour")).await);
    assert!(unknown.starts_with("there is no key `colour`, only attempt_count, attempts, "), "{unknown}");
    assert!(unknown.ends_with(", attempts.timing"), "{unknown}");
    assert_eq!(msg(api.get(&format!("{path}?fields=id,id")).await), "`id` is named twice");
    let of_runs = api.get("/v1/runs?fields=attempts.timing").await;
    assert_eq!(of_runs.invalid(), ["query.fields enum"]);
    assert_eq!(
        api.get(&format!("/v1/runs/{RUN}?fields=id")).await.invalid(),
        ["query.fields extra_forbidden"]
    );
}

/// A payload that isn't JSON fails only responses that show it.
async fn a_payload_that_is_not_selected_is_not_read(mut api: TestApi) {
    let path = tried_delivery(&mut api).await;
    api.database.as_ref().unwrap().execute("UPDATE deliveries SET payload = 'no'");
    assert_eq!(api.get(&path).await.status, 500);
    assert_eq!(api.get(&format!("{path}?fields=payload")).await.status, 500);
    assert_eq!(api.get(&format!("{path}?fields=payload_bytes")).await.json(), json!({"payload_bytes": "no"}));
    assert_eq!(api.get(&format!("{path}?fields=attempt_count")).await.json(), json!({"attempt_count": 1}));
}

//! Reports of the run engine, and the deliveries that result.

use contracts::{Destination, Job, RunId};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{RUN, SUCCEEDED, TestApi, send};

testkit::on_both_backends!(
    a_run_is_created_then_replaced_until_it_ends,
    a_run_that_ends_gets_one_automatic_delivery_and_a_doorbell_after_the_commit,
    after_a_run_has_ended_only_its_output_can_change,
    an_ended_runs_status_never_changes,
    a_run_without_url_gets_no_delivery,
    many_reports_of_the_same_end_make_one_delivery,
    an_invalid_run_is_refused_with_all_its_errors_and_not_recorded,
    a_callback_url_must_be_callable_and_allowed,
    a_callback_url_is_recorded_and_shown_as_used_on_the_wire,
    any_accepted_text_can_be_recorded,
    the_same_id_in_two_organizations_is_two_runs,
);

async fn a_run_is_created_then_replaced_until_it_ends(api: TestApi) {
    let created = api.put_run(r#"{"status_code": "running", "metadata": {"a": 1.0}}"#).await;
    assert_eq!(created.status, 201);
    insta::assert_snapshot!("run_created", created.shown(&[("org", &api.org)]));
    api.clock.advance(std::time::Duration::from_secs(1));
    let replaced =
        api.put_run(r#"{"status_code": "running", "started_at": "2026-01-02T05:00:00+02:00"}"#).await;
    assert_eq!(replaced.status, 200);
    insta::assert_snapshot!("run_replaced", replaced.shown(&[("org", &api.org)]));
    assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.text, replaced.text);
}

async fn a_run_that_ends_gets_one_automatic_delivery_and_a_doorbell_after_the_commit(mut api: TestApi) {
    assert_eq!(api.put_run(r#"{"status_code": "queued"}"#).await.status, 201);
    let request = api.put(&format!("/v1/runs/{RUN}"), SUCCEEDED).header("x-request-id", "engine-7");
    let (store, org) = (api.store.clone(), api.org);
    let (put, (job, committed)) = tokio::join!(send(request), async {
        let job = api.doorbell().await;
        let id = job.delivery_id;
        (
            job,
            store.read(move |tx| store::find_delivery(tx, org, id, store::DeliveryParts::ALL)).await.unwrap(),
        )
    });
    assert_eq!(put.status, 200);
    let delivery = committed.expect("the doorbell rang before the commit");
    assert!(delivery.is_automatic);
    let expected = Job {
        delivery_id: delivery.id,
        attempt: 1,
        destination: Destination::of(org, "https://example.com"),
        payload_size: Some(delivery.payload_bytes.len() as u64),
        org_id: org,
        request_id: "engine-7".to_owned(),
        traceparent: None,
    };
    assert_eq!(job, expected);
    assert_eq!(api.put_run(SUCCEEDED).await.status, 200);
    assert_eq!(api.record().await.1, [delivery]);
}

async fn after_a_run_has_ended_only_its_output_can_change(mut api: TestApi) {
    let first = api.put_run(SUCCEEDED).await;
    api.doorbell().await;
    api.clock.advance(std::time::Duration::from_secs(60));
    let body = r#"{"status_code": "succeeded", "output": ["fresh"], "duration_ms": 9,
        "callback_url": "https://other.example/", "metadata": null}"#;
    let again = api.put_run(body).await;
    assert_eq!(again.status, 200);
    let expected = first.text.replace(r#"{"images":[]}"#, r#"["fresh"]"#);
    let expected =
        expected.replace(r#""updated_at":"2026-01-02T03:04:"#, r#""updated_at":"2026-01-02T03:05:"#);
    assert_eq!(again.text, expected);
}

async fn an_ended_runs_status_never_changes(mut api: TestApi) {
    api.put_run(SUCCEEDED).await;
    api.doorbell().await;
    let before = api.record().await;
    for status in ["failed", "running"] {
        let body = format!(r#"{{"status_code": "{status}", "output": 1}}"#);
        let reply = send(api.put(&format!("/v1/runs/{RUN}"), body)).await;
        assert_eq!(reply.error(), (409, "CONFLICT".into()));
        assert_eq!(reply.json()["message"], "the run has ended as succeeded, which never changes");
    }
    assert_eq!(api.record().await, before);
}

async fn a_run_without_url_gets_no_delivery(api: TestApi) {
    assert_eq!(api.put_run(r#"{"status_code": "canceled", "callback_url": null}"#).await.status, 201);
    let deliveries = api.get(&format!("/v1/runs/{RUN}/callback")).await;
    assert_eq!((deliveries.status, &*deliveries.text), (200, "[]"));
}

async fn many_reports_of_the_same_end_make_one_delivery(mut api: TestApi) {
    let puts = join_all((0..16).map(|_| api.put_run(SUCCEEDED))).await;
    let mut statuses: Vec<u16> = puts.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!((statuses[..15].to_vec(), statuses[15]), (vec![200; 15], 201));
    let job = api.doorbell().await;
    let deliveries = api.record().await.1;
    assert_eq!(deliveries.iter().map(|delivery| delivery.id).collect::<Vec<_>>(), [job.delivery_id]);
}

async fn an_invalid_run_is_refused_with_all_its_errors_and_not_recorded(api: TestApi) {
    for (body, expected) in [
        ("", &["body.0 json_invalid"][..]),
        ("[]", &["body object_type"]),
        (r#"{"status_code": "queued""#, &["body.24 json_invalid"]),
        (r#"{"status_code": "queued", "output": NaN}"#, &["body.36 json_invalid"]),
        (r#"{"output": "\ud800"}"#, &["body.12 json_invalid"]),
        ("{}", &["body.status_code missing"]),
        (
            r#"{"status_code": "done", "duration_ms": "1", "created_at": "2026-01-02T03:04:05", "metadata": [],
                "failure_code": "a\u0000", "callback_url": 1, "id": 1}"#,
            &[
                "body.status_code enum",
                "body.duration_ms int_type",
                "body.created_at datetime_invalid",
                "body.callback_url string_type",
                "body.metadata object_type",
                "body.failure_code null_character",
                "body.id extra_forbidden",
            ],
        ),
    ] {
        assert_eq!(api.put_run(body).await.invalid(), expected, "{body}");
    }
    assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.error(), (404, "RUN_NOT_FOUND".into()));
}

async fn a_callback_url_must_be_callable_and_allowed(api: TestApi) {
    let long = format!("https://example.com/{}", "a".repeat(2_029));
    for (url, expected) in [
        ("", "url_invalid"),
        ("example.com/hook", "url_invalid"),
        ("ftp://example.com/", "url_invalid"),
        ("https://user@example.com/", "url_invalid"),
        ("https://example.com/#top", "url_invalid"),
        ("https:example.com", "url_invalid"),
        ("https:/example.com/", "url_invalid"),
        ("https:///example.com/", "url_invalid"),
        (r"https:\\\\example.com", "url_invalid"),
        (r"https://example.com\\hook", "url_invalid"),
        ("https://@example.com/", "url_invalid"),
        ("https://example.com:0/", "url_invalid"),
        ("https://a..example.com/", "url_invalid"),
        ("https://example.com../", "url_invalid"),
        ("https://a!b.example.com/", "url_invalid"),
        ("https://-a.example.com/", "url_invalid"),
        (&format!("https://{}.com/", "a".repeat(64)), "url_invalid"),
        (&format!("https://{}example.com/", "a.".repeat(125)), "url_invalid"),
        (&format!("https://example.com/{}", "é".repeat(1000)), "url_invalid"),
        ("http://example.com:22/", "url_blocked"),
        ("http://127.0.0.1/", "url_blocked"),
        ("http://2130706433/", "url_blocked"),
        ("http://[::ffff:10.0.0.1]/", "url_blocked"),
        ("http://localhost:8080/", "url_blocked"),
        (&long, "string_too_long"),
    ] {
        let body = format!(r#"{{"status_code": "succeeded", "callback_url": "{url}"}}"#);
        let reply = send(api.put(&format!("/v1/runs/{RUN}"), body)).await;
        assert_eq!(reply.invalid(), [format!("body.callback_url {expected}")], "{url}");
    }
    assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.status, 404);
}

async fn a_callback_url_is_recorded_and_shown_as_used_on_the_wire(mut api: TestApi) {
    let body = r#"{"status_code": "succeeded", "callback_url": "HTTPS://BÜCHER.example:443/a/../é?q=ü"}"#;
    let url = "https://xn--bcher-kva.example/%C3%A9?q=%C3%BC";
    let first = api.put_run(body).await;
    assert_eq!((first.status, &first.json()["callback_url"]), (201, &url.into()));
    assert_eq!(api.doorbell().await.destination, Destination::of(api.org, url));
    let repeated = api.put_run(body).await;
    assert_eq!((repeated.status, repeated.text), (200, first.text));
    let deliveries = api.record().await.1;
    assert_eq!(deliveries.iter().map(|delivery| &*delivery.callback_url).collect::<Vec<_>>(), [url]);
}

/// Texts of all lengths and Unicode planes, above all in hosts: they are part of an index, whose entries are
/// bounded.
async fn any_accepted_text_can_be_recorded(mut api: TestApi) {
    let mut state = 1_u32;
    let mut text = |length: usize, from: u32, count: u32| {
        let chars = (0..length).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_u32(from + (state >> 16) % count).unwrap()
        });
        chars.collect::<String>()
    };
    let cjk = |text: &mut dyn FnMut(usize, u32, u32) -> String, labels: usize, length: usize| {
        (0..labels).map(|_| text(length, 0x4e00, 0x5000)).collect::<Vec<_>>().join(".")
    };
    let mut runs = Vec::new();
    for (labels, length) in [(1, 5), (1, 13), (2, 13), (5, 8), (8, 13), (46, 40), (1, 2000), (100, 1)] {
        runs.push(json!({"callback_url": format!("https://{}/", cjk(&mut text, labels, length))}));
        runs.push(
            json!({"callback_url": format!("https://example.com/{}", text(labels * length, 0x4e00, 0x5000))}),
        );
    }
    for (labels, length) in [(3, 63), (4, 63), (30, 63), (1, 64), (125, 1), (127, 1), (900, 1)] {
        let host = (0..labels).map(|_| text(length, 0x61, 26)).collect::<Vec<_>>().join(".");
        runs.push(json!({"callback_url": format!("https://{host}/")}));
    }
    for (from, count) in [(1, 0x1f), (0x7f, 0x80), (0xe000, 0x2000), (0x10000, 0x1000), (0x10_0000, 0x1_0000)]
    {
        let field = text(1_000, from, count);
        runs.push(json!({"failure_code": field, "failure_message": field, "failure_stage_code": field,
            "output": {&field: field}, "metadata": {&field: field}}));
    }
    let mut statuses = Vec::new();
    for mut run in runs {
        run["status_code"] = "failed".into();
        let id = RunId(Uuid::new_v4());
        let reply = send(api.put(&format!("/v1/runs/{id}"), run.to_string())).await;
        statuses.push(reply.status);
        if reply.status == 201 {
            assert_eq!(api.get(&format!("/v1/runs/{id}")).await.text, reply.text);
            let url = reply.json()["callback_url"].clone();
            if url.is_string() {
                let delivery = api.doorbell().await.delivery_id;
                let delivery = api.get(&format!("/v1/callback-deliveries/{delivery}")).await.json();
                assert_eq!(delivery["callback_url"], url);
            }
        } else {
            assert_eq!(reply.invalid(), ["body.callback_url url_invalid"]);
        }
    }
    let count = |status| statuses.iter().filter(|&&other| other == status).count();
    assert!(count(201) >= 10 && count(422) >= 5, "{statuses:?}");
}

async fn the_same_id_in_two_organizations_is_two_runs(api: TestApi) {
    let (other, token) = api.another_organization().await;
    assert_eq!(api.put_run(r#"{"status_code": "queued"}"#).await.status, 201);
    let path = format!("/v1/runs/{RUN}");
    let theirs = api.bare(Method::PUT, &path).bearer_auth(token).header("content-type", "application/json");
    let theirs = send(theirs.body(r#"{"status_code": "running"}"#)).await;
    assert_eq!((theirs.status, &theirs.json()["org_id"]), (201, &other.to_string().into()));
    let id: RunId = RUN.parse().unwrap();
    let ours = api.org;
    let ours = api.store.read(move |tx| store::find_run(tx, ours, id)).await.unwrap().unwrap();
    assert_eq!(ours.status_code.to_string(), "queued");
}

//! Paging through lists.

use std::collections::BTreeSet;
use std::time::Duration;

use contracts::{RunId, RunUpdate};
use engine::Settlement;
use reqwest::Method;
use serde_json::Value;
use store::Deliver;
use uuid::Uuid;

use crate::harness::{TestApi, redeliveries, send};

testkit::on_both_backends!(
    an_empty_list_is_an_empty_page,
    paging_forwards_and_backwards_neither_skips_nor_repeats_rows,
    rows_added_while_paging_do_not_shift_pages,
    deliveries_are_filtered_by_each_property_and_by_several,
    deliveries_are_filtered_by_any_spelling_of_a_host,
    a_host_that_no_delivery_can_have_is_refused_as_a_filter,
    runs_are_filtered_by_status_and_time,
    secrets_are_listed_without_their_plain_text,
    a_delivery_looks_the_same_in_a_list_and_by_its_id,
    another_organizations_rows_are_in_no_list,
    each_invalid_parameter_is_reported,
    a_cursor_that_the_api_did_not_issue_is_refused,
    the_statuses_are_listed_in_their_order,
);

const DELIVERIES: &str = "/v1/callback-deliveries";

/// Records a run that has ended, with an automatic delivery if `deliver` says so.
async fn run(api: &TestApi, deliver: Deliver, url: &str) -> RunId {
    let id = RunId::new(api.clock.now());
    let body = format!(r#"{{"status_code": "succeeded", "callback_url": "{url}"}}"#);
    let update = RunUpdate::parse(body.as_bytes()).unwrap();
    let policy = store::AcceptPolicy { max_attempts: 1, payload_format: contracts::PayloadFormat::Python };
    let org = api.org;
    let record =
        move |tx: &mut _, now| store::record_run(tx, now, &policy, deliver, (org, id), &update, &"r".into());
    api.store.write(record).await.unwrap();
    id
}

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

async fn page(api: &TestApi, path: &str, query: &str) -> Value {
    let reply = api.get(&format!("{path}?{query}")).await;
    assert_eq!(reply.status, 200, "{query}: {}", reply.text);
    reply.json()
}

async fn an_empty_list_is_an_empty_page(api: TestApi) {
    for path in [DELIVERIES, "/v1/runs", "/v1/callback-secrets"] {
        let reply = api.get(path).await;
        assert_eq!(reply.text, r#"{"items":[],"first":null,"next":null,"previous":null}"#, "{path}");
    }
}

/// Seven runs, of which three were created at the same moment.
async fn paging_forwards_and_backwards_neither_skips_nor_repeats_rows(api: TestApi) {
    let mut made = Vec::new();
    for i in 0..7 {
        made.push(run(&api, Deliver::Automatically, "https://example.com/").await.to_string());
        if !(2..4).contains(&i) {
            api.clock.advance(Duration::from_secs(1));
        }
    }
    made[2..5].sort(); // ordered by ID
    for (path, order, limit) in
        [("/v1/runs", "asc", 2), ("/v1/runs", "desc", 3), (DELIVERIES, "asc", 3), (DELIVERIES, "desc", 1)]
    {
        let all = ids(&page(&api, path, &format!("sort_by=created_at:{order}&limit=500")).await);
        assert_eq!(all.len(), 7);
        if path == "/v1/runs" {
            let mut expected = made.clone();
            if order == "desc" {
                expected.reverse();
            }
            assert_eq!(all, expected);
        }
        let query = format!("sort_by=created_at:{order}&limit={limit}");
        let mut pages = vec![page(&api, path, &query).await];
        assert_eq!((&pages[0]["first"], &pages[0]["previous"]), (&Value::Null, &Value::Null));
        while let Some(next) = pages.last().unwrap()["next"].as_str() {
            pages.push(page(&api, path, &format!("{query}&pq={next}")).await);
        }
        assert_eq!(pages.iter().flat_map(ids).collect::<Vec<_>>(), all);
        for (before, after) in pages.iter().zip(&pages[1..]) {
            let previous = after["previous"].as_str().unwrap();
            let back = page(&api, path, &format!("{query}&pq={previous}&from_prev=true")).await;
            assert_eq!(&back, before);
            let first = after["first"].as_str().unwrap();
            assert_eq!(page(&api, path, &format!("{query}&pq={first}")).await, pages[0]);
        }
    }
}

async fn rows_added_while_paging_do_not_shift_pages(api: TestApi) {
    let mut made = BTreeSet::new();
    for _ in 0..4 {
        made.insert(run(&api, Deliver::Never, "https://example.com/").await.to_string());
        api.clock.advance(Duration::from_secs(1));
    }
    let newest = page(&api, "/v1/runs", "limit=2").await;
    run(&api, Deliver::Never, "https://example.com/").await;
    let next = page(&api, "/v1/runs", &format!("limit=2&pq={}", newest["next"].as_str().unwrap())).await;
    assert_eq!(ids(&newest).into_iter().chain(ids(&next)).collect::<BTreeSet<_>>(), made);
    assert_eq!(next["next"], Value::Null);
}

async fn deliveries_are_filtered_by_each_property_and_by_several(mut api: TestApi) {
    let first = run(&api, Deliver::Automatically, "https://A.example.com:8443/x").await; // pending
    api.clock.advance(Duration::from_secs(60));
    let second = run(&api, Deliver::Never, "https://b.example.com/").await;
    let redelivered = api.post(&redeliveries(second), "").await.id().to_string();
    let job = api.doorbell().await;
    api.claim(&job).await;
    let failed = engine::Settlement::Failed;
    api.finish(&job, Some(500), failed).await;
    let automatic = ids(&page(&api, DELIVERIES, &format!("run_id={first}")).await).remove(0);
    let (both, automatic, redelivered) =
        (vec![redelivered.clone(), automatic.clone()], vec![automatic], vec![redelivered]);
    for (query, expected) in [
        ("", &both),
        ("status_code=pending", &automatic),
        ("status_code=failed", &redelivered),
        ("status_code=delivering", &vec![]),
        (&format!("run_id={second}"), &redelivered),
        (
            &format!(
                "run_id={second}&status_code=failed&is_automatic=false&callback_host=b.example.com&failure_reason_code=http_error"
            ),
            &redelivered,
        ),
        (&format!("run_id={second}&status_code=pending"), &vec![]),
        (&format!("run_id={second}&is_automatic=true"), &vec![]),
        (&format!("run_id={second}&callback_host=a.example.com"), &vec![]),
        (&format!("run_id={second}&failure_reason_code=timeout"), &vec![]),
        ("callback_host=a.example.com", &automatic),
        ("callback_host=B.Example.Com", &redelivered),
        ("callback_host=example.com", &vec![]),
        ("is_automatic=true", &automatic),
        ("is_automatic=false", &redelivered),
        ("failure_reason_code=http_error", &redelivered),
        ("failure_reason_code=timeout", &vec![]),
        ("created_after=2026-01-02T03:05:05.678Z", &redelivered),
        ("created_after=2026-01-02T05:05:05.678+02:00", &redelivered),
        ("created_before=2026-01-02T03:05:05.678Z", &automatic),
        ("created_after=2026-01-02T03:04:05.678Z&created_before=2026-01-02T03:05:05.679Z", &both),
        (
            "status_code=failed&is_automatic=false&callback_host=b.example.com&failure_reason_code=http_error",
            &redelivered,
        ),
        ("status_code=failed&is_automatic=true", &vec![]),
        ("failure_reason_code=http_error&status_code=succeeded", &vec![]),
    ] {
        assert_eq!(ids(&page(&api, DELIVERIES, query).await), *expected, "{query}");
    }
}

async fn deliveries_are_filtered_by_any_spelling_of_a_host(api: TestApi) {
    for (url, hosts) in [
        (
            "https://xn--bcher-kva.example:8443/",
            &[
                "xn--bcher-kva.example",
                "XN--BCHER-KVA.example",
                "bücher.example",
                "BÜCHER。EXAMPLE",
                "b%C3%BCcher.example",
            ][..],
        ),
        ("https://[2600::1]/", &["[2600::1]", "[2600:0::0001]"]),
        ("https://8.8.8.8/", &["8.8.8.8", "134744072", "８.8.8.8"]),
        ("https://example.com./", &["example.com.", "EXAMPLE.com."]),
        ("https://my_service/", &["my_service"]),
    ] {
        run(&api, Deliver::Automatically, url).await;
        for host in hosts {
            let found = page(&api, DELIVERIES, &format!("callback_host={host}")).await;
            let urls: Vec<_> =
                found["items"].as_array().unwrap().iter().map(|item| &item["callback_url"]).collect();
            assert_eq!(urls, [url], "{host}");
        }
    }
}

async fn a_host_that_no_delivery_can_have_is_refused_as_a_filter(api: TestApi) {
    for host in [
        "",
        "%00",
        "a..b",
        "a%20b",
        "a%09b",
        "https://example.com",
        "example.com:443",
        "example.com/",
        "2600::1",
        "a!b",
        "256.0.0.1",
    ] {
        let reply = api.get(&format!("{DELIVERIES}?callback_host={host}")).await;
        assert_eq!(reply.invalid(), ["query.callback_host host_invalid"], "{host}");
    }
    let long = "a".repeat(64);
    let reply = api.get(&format!("{DELIVERIES}?callback_host={long}")).await;
    assert_eq!(reply.invalid(), ["query.callback_host host_invalid"]);
}

async fn runs_are_filtered_by_status_and_time(api: TestApi) {
    let ended = run(&api, Deliver::Never, "https://example.com/").await.to_string();
    api.clock.advance(Duration::from_secs(60));
    let open = Uuid::new_v4();
    send(api.put(&format!("/v1/runs/{open}"), r#"{"status_code": "running"}"#)).await;
    let open = open.to_string();
    for (query, expected) in [
        ("", vec![&open, &ended]),
        ("status_code=running", vec![&open]),
        ("status_code=canceled", vec![]),
        ("created_before=2026-01-02T03:05:05.678Z", vec![&ended]),
        ("created_after=2026-01-02T03:05:05.678Z", vec![&open]),
    ] {
        assert_eq!(ids(&page(&api, "/v1/runs", query).await).iter().collect::<Vec<_>>(), expected, "{query}");
    }
    let listed = page(&api, "/v1/runs", "").await["items"][0].clone();
    assert_eq!(listed, api.get(&format!("/v1/runs/{open}")).await.json());
}

async fn secrets_are_listed_without_their_plain_text(api: TestApi) {
    let mut made = Vec::new();
    for _ in 0..3 {
        let secret = api.post("/v1/callback-secrets", "").await.json();
        made.insert(0, secret["id"].as_str().unwrap().to_owned());
        api.clock.advance(Duration::from_secs(1));
    }
    let list = api.get("/v1/callback-secrets").await;
    assert_eq!(ids(&list.json()), made);
    assert!(!list.text.contains("plain_secret"));
    let shown = api.get(&format!("/v1/callback-secrets/{}", made[0])).await;
    assert_eq!(list.json()["items"][0], shown.json());
    let next = page(&api, "/v1/callback-secrets", "limit=2").await["next"].as_str().unwrap().to_owned();
    assert_eq!(ids(&page(&api, "/v1/callback-secrets", &format!("pq={next}")).await), made[2..]);
}

async fn a_delivery_looks_the_same_in_a_list_and_by_its_id(mut api: TestApi) {
    api.delivered_run().await;
    let shown = api.redeliver().await;
    let job = api.doorbell().await;
    api.claim(&job).await;
    api.finish(&job, Some(503), Settlement::RetryAt(api.clock.now())).await;
    let list = api.get(DELIVERIES).await;
    let shown = api.get(&format!("{DELIVERIES}/{}", shown.id())).await;
    assert!(list.text.contains(&shown.text), "{}", list.text);
    assert_eq!(list.json()["items"].as_array().unwrap().len(), 2);
}

async fn another_organizations_rows_are_in_no_list(mut api: TestApi) {
    run(&api, Deliver::Automatically, "https://example.com/").await;
    run(&api, Deliver::Automatically, "https://example.com/").await;
    api.post("/v1/callback-secrets", "").await;
    let cursors = [DELIVERIES, "/v1/runs"].map(|path| format!("{path}?limit=1"));
    let mut next = Vec::new();
    for path in &cursors {
        next.push(api.get(path).await.json()["next"].as_str().unwrap().to_owned());
    }
    api.token = api.another_organization().await.1;
    for path in [DELIVERIES, "/v1/runs", "/v1/callback-secrets"] {
        assert_eq!(ids(&page(&api, path, "").await), [""; 0]);
        for cursor in &next {
            assert_eq!(ids(&page(&api, path, &format!("pq={cursor}")).await), [""; 0]);
        }
    }
}

async fn each_invalid_parameter_is_reported(api: TestApi) {
    let path = format!(
        "{DELIVERIES}?limit=0&sort_by=id&from_prev=1&pq=%00&status_code=done&run_id=7&is_automatic=yes&\
         failure_reason_code=x&created_after=2026-01-01&created_before=2026-01-01T00:00:00&callback_host=%00&page=2"
    );
    assert_eq!(
        api.get(&path).await.invalid(),
        [
            "query.created_after datetime_invalid",
            "query.created_before datetime_invalid",
            "query.limit greater_than_equal",
            "query.sort_by enum",
            "query.from_prev bool_parsing",
            "query.pq cursor_invalid",
            "query.status_code enum",
            "query.run_id uuid_parsing",
            "query.callback_host host_invalid",
            "query.is_automatic bool_parsing",
            "query.failure_reason_code enum",
            "query.page extra_forbidden",
        ]
    );
    for (limit, expected) in [
        ("501", "query.limit less_than_equal"),
        ("-1", "query.limit greater_than_equal"),
        ("99999999999999999999", "query.limit int_parsing"),
        ("1.0", "query.limit int_parsing"),
        ("", "query.limit int_parsing"),
        ("5&limit=6", "query.limit duplicate"),
    ] {
        assert_eq!(api.get(&format!("/v1/runs?limit={limit}")).await.invalid(), [expected], "{limit}");
    }
}

async fn a_cursor_that_the_api_did_not_issue_is_refused(api: TestApi) {
    for _ in 0..2 {
        run(&api, Deliver::Never, "https://example.com/").await;
        api.clock.advance(Duration::from_secs(1));
    }
    let cursor = page(&api, "/v1/runs", "limit=1").await["next"].as_str().unwrap().to_owned();
    let refused = async |query: &str| {
        assert_eq!(
            api.get(&format!("/v1/runs?{query}")).await.invalid(),
            ["query.pq cursor_invalid"],
            "{query}"
        );
    };
    for place in 0..cursor.len() {
        let other = if cursor.as_bytes()[place] == b'A' { "B" } else { "A" };
        refused(&format!("pq={}{other}{}", &cursor[..place], &cursor[place + 1..])).await;
        refused(&format!("pq={}", &cursor[..place])).await;
    }
    refused(&format!("pq={cursor}A")).await;
    refused(&format!("pq={cursor}=")).await;
    refused(&format!("pq={cursor}&sort_by=created_at:asc")).await; // a cursor of the other order
    let next = page(&api, "/v1/runs", &format!("pq={cursor}")).await;
    refused(&format!("pq={}&from_prev=true", next["first"].as_str().unwrap())).await;
}

async fn the_statuses_are_listed_in_their_order(api: TestApi) {
    let reply = send(api.request(Method::GET, "/v1/runs/statuses")).await;
    assert_eq!(
        reply.text,
        r#"["queued","dispatching","running","succeeded","failed","canceled","partial_succeeded"]"#
    );
}

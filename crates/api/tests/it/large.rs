//! Large data: pages that end early, responses in chunks, and requests that wait for memory.

use std::time::Duration;

use api::Limits;
use contracts::{OrgId, RunId, RunUpdate};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use store::{AcceptPolicy, Clock, Deliver};
use testkit::Backend;

use crate::harness::{TestApi, redeliveries, send};

testkit::on_both_backends!(
    a_page_ends_at_the_byte_limit_and_no_row_is_skipped,
    a_runs_deliveries_are_bounded_and_link_to_older_ones,
    large_requests_wait_for_memory_and_are_all_served,
);

const KIB: usize = 1024;

/// Records a run that has ended, with `output` bytes of output.
async fn run(api: &TestApi, deliver: Deliver, output: usize) -> RunId {
    let id = RunId::new(api.clock.now());
    let body = json!({"status_code": "succeeded", "output": "x".repeat(output), "callback_url": "https://example.com/"});
    let update = RunUpdate::parse(body.to_string().as_bytes()).unwrap();
    let policy = AcceptPolicy { max_attempts: 1, payload_format: contracts::PayloadFormat::Python };
    let org = api.org;
    let record =
        move |tx: &mut _, now| store::record_run(tx, now, &policy, deliver, (org, id), &update, &"r".into());
    api.store.write(record).await.unwrap();
    api.clock.advance(Duration::from_millis(1));
    id
}

fn ids(items: &Value) -> Vec<String> {
    items.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// Rows of all sizes: some fit on a page together, one is larger than a page, and those of 300 KiB need
/// reserved memory.
async fn a_page_ends_at_the_byte_limit_and_no_row_is_skipped(api: TestApi) {
    let api = api.limited_to(Limits { page_bytes: 600 * KIB, ..Limits::default() }).await;
    let mut made = Vec::new();
    for kib in [1, 300, 250, 1, 700, 1, 1, 300, 299] {
        made.push(run(&api, Deliver::Never, kib * KIB).await.to_string());
    }
    for order in ["asc", "desc"] {
        let first = format!("/v1/runs?sort_by=created_at:{order}&limit=500");
        let mut pages = vec![api.get(&first).await];
        while let Some(next) = pages.last().unwrap().json()["next"].as_str() {
            pages.push(api.get(&format!("{first}&pq={next}")).await);
        }
        let walked: Vec<String> = pages.iter().flat_map(|page| ids(&page.json()["items"])).collect();
        let expected: Vec<String> =
            if order == "asc" { made.clone() } else { made.iter().rev().cloned().collect() };
        assert_eq!(walked, expected);
        for page in &pages {
            let items = page.json()["items"].as_array().unwrap().len();
            assert!(page.text.len() < 640 * KIB || items == 1, "{items} items in {} bytes", page.text.len());
        }
        assert!(pages.len() <= 5, "{} pages", pages.len());
        // Backwards.
        let last = pages.last().unwrap().json();
        let back = format!("{first}&from_prev=true&pq={}", last["previous"].as_str().unwrap());
        let back = ids(&api.get(&back).await.json()["items"]);
        assert_eq!(back, ids(&pages[pages.len() - 2].json()["items"]));
        // Fields that are not selected are not read.
        let slim = api.get(&format!("{first}&fields=id,status_code")).await.json();
        assert_eq!(ids(&slim["items"]), expected);
    }
}

async fn a_runs_deliveries_are_bounded_and_link_to_older_ones(api: TestApi) {
    let mut api = api.limited_to(Limits { page_bytes: 700 * KIB, ..Limits::default() }).await;
    let id = run(&api, Deliver::Automatically, 150 * KIB).await;
    let mut made = ids(&api.get(&format!("/v1/runs/{id}/callback")).await.json());
    for _ in 0..3 {
        let withdraw = format!("/v1/callback-deliveries/{}/withdraw", made[0]);
        assert_eq!(send(api.request(Method::POST, &withdraw)).await.status, 200);
        let reply = send(api.request(Method::POST, &redeliveries(id))).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        api.doorbell().await;
        made.insert(0, reply.json()["id"].as_str().unwrap().to_owned());
        api.clock.advance(Duration::from_millis(1));
    }
    let newest = api.get(&format!("/v1/runs/{id}/callback")).await;
    assert_eq!(ids(&newest.json()), made[..2]);
    let link = newest.header("link");
    let older = link.strip_prefix('<').and_then(|link| link.strip_suffix(r#">; rel="next""#)).unwrap();
    assert_eq!(ids(&api.get(older).await.json()["items"]), made[2..]);
    let slim = api.get(&format!("/v1/runs/{id}/callback?fields=id,status_code")).await;
    assert_eq!((ids(&slim.json()), slim.header("link")), (made.clone(), ""));
}

/// Memory for two of them at once, half of it for one organization.
async fn large_requests_wait_for_memory_and_are_all_served(api: TestApi) {
    let limits = Limits { working: 20 << 20, arriving: 1 << 20, ..Limits::default() };
    let mut api = api.limited_to(limits).await;
    let mut runs = Vec::new();
    for _ in 0..12 {
        runs.push(run(&api, Deliver::Never, 500 * KIB).await);
    }
    let replies = join_all(runs.iter().map(|run| send(api.request(Method::POST, &redeliveries(run))))).await;
    for reply in &replies {
        assert_eq!(reply.status, 201, "{}", &reply.text[..100]);
        assert_eq!(reply.header("content-length"), reply.text.len().to_string());
        let payload = reply.json()["payload_bytes"].as_str().unwrap().len();
        assert!(payload > 500 * KIB);
    }
    for _ in &runs {
        api.doorbell().await;
    }
    let show = async |run: &RunId| api.get(&format!("/v1/runs/{run}")).await;
    let shown = join_all(runs.iter().map(show)).await;
    assert!(shown.iter().all(|reply| reply.status == 200 && reply.text.len() > 500 * KIB));
}

/// A cursor must not point to a row while an older row is uncommitted.
#[tokio::test(flavor = "multi_thread")]
async fn following_a_list_in_ascending_order_misses_no_concurrent_write() {
    for backend in [Backend::Postgres, Backend::Sqlite] {
        let followed = tokio::time::timeout(Duration::from_secs(60), follow(backend)).await;
        followed.unwrap_or_else(|_| panic!("{backend:?}: some runs were never seen"));
    }
}

async fn follow(backend: Backend) {
    const WRITERS: usize = 6;
    const RUNS: usize = 30;
    let api = TestApi::with_clock(backend, Clock::system()).await;
    let org: OrgId = api.org;
    let policy = AcceptPolicy { max_attempts: 1, payload_format: contracts::PayloadFormat::Python };
    let writer = |writer: usize| {
        let store = api.store.clone();
        tokio::spawn(async move {
            for n in 0..RUNS {
                let update = RunUpdate::parse(br#"{"status_code": "running"}"#).unwrap();
                let write = store.write_within(Duration::from_secs(60), move |tx, now| {
                    let id = RunId::new(now);
                    store::record_run(tx, now, &policy, Deliver::Never, (org, id), &update, &"r".into())?;
                    // Some transactions commit long after they began, as behind a lock.
                    std::thread::park_timeout(Duration::from_millis(((writer * 7 + n * 13) % 40) as u64));
                    Ok::<_, store::StoreError>(())
                });
                write.await.unwrap();
            }
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    let (first, mut at, mut seen) =
        ("/v1/runs?sort_by=created_at:asc&limit=20".to_owned(), None::<String>, Vec::new());
    let mut on_page = 0;
    while seen.len() < WRITERS * RUNS {
        let path = at.as_ref().map_or(first.clone(), |at| format!("{first}&pq={at}"));
        let page = api.get(&path).await.json();
        let items = ids(&page["items"]);
        seen.extend_from_slice(&items[on_page..]);
        on_page = items.len();
        if let Some(next) = page["next"].as_str() {
            (at, on_page) = (Some(next.to_owned()), 0);
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len(), "a run was seen twice");
}

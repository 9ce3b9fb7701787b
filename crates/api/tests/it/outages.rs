//! When the database is away, or holds what can't be shown.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use api::Limits;
use contracts::{Delivery, DeliveryStatus};
use futures_util::future::join_all;
use reqwest::Method;
use store::StoreError;
use testkit::{Engine, Proxy, TestDatabase};

use crate::harness::{CONNECTIONS, RUN, Reply, SUCCEEDED, TestApi, on_both_engines, redeliveries, send};

on_both_engines!(
    an_internal_error_says_nothing_of_its_cause,
    when_all_connections_stay_busy_a_request_is_asked_to_come_again_after_a_second,
);

/// PostgreSQL only: an open SQLite file doesn't go away.
#[tokio::test]
async fn without_its_database_the_api_asks_to_come_again() {
    let mut api = TestApi::start(Engine::Postgres).await;
    assert_eq!(api.put_run(SUCCEEDED).await.status, 201);
    api.doorbell().await;
    api.lose_database();
    let known = api.token.clone();
    for token in [known, format!("rf_live_{}", "0".repeat(64))] {
        let request = api.bare(Method::POST, &redeliveries(RUN)).bearer_auth(token);
        assert_unavailable(&send(request).await);
    }
    assert_eq!(api.get("/v1/health").await.status, 200);
}

/// PostgreSQL only, as above.
#[tokio::test]
async fn without_its_database_the_api_is_not_ready_and_says_why() {
    let mut api = TestApi::start(Engine::Postgres).await;
    api.lose_database();
    let reply = loop {
        let reply = api.get("/health/ready").await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!(reply.error(), (503, "SERVICE_UNAVAILABLE".into()));
    let message = reply.json()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("the database has not answered for "), "{message}");
}

/// A full disk and a deadlock, in whatever language the server says so.
#[tokio::test]
async fn while_its_database_takes_nothing_the_api_asks_to_come_again() {
    let mut api = TestApi::start(Engine::Postgres).await;
    api.delivered_run().await;
    let database = api.database.as_ref().expect("it is not lost");
    for (state, words) in [("53100", "No queda espacio en el dispositivo"), ("40P01", "Verklemmung entdeckt")]
    {
        database.execute(&format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{state}'; END $$;
             CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION refuse()"
        ));
        for reply in join_all([api.redeliver(), api.redeliver()]).await {
            assert_unavailable(&reply);
        }
    }
    database.execute("DROP TRIGGER refuse ON deliveries");
    assert_eq!(api.redeliver().await.status, 201);
    api.doorbell().await;
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

fn assert_unavailable(reply: &Reply) {
    assert_eq!(reply.error(), (503, "SERVICE_UNAVAILABLE".into()));
    assert_eq!(reply.header("retry-after"), "2");
    assert_eq!(reply.json()["message"], "the service is temporarily unavailable");
}

async fn when_all_connections_stay_busy_a_request_is_asked_to_come_again_after_a_second(api: TestApi) {
    let (release, busy) = hold(&api).await;
    let asked = Instant::now();
    let reply = api.get(&format!("/v1/runs/{RUN}")).await;
    let waited = asked.elapsed();
    assert_unavailable(&reply);
    assert!(Duration::from_millis(900) < waited && waited < Duration::from_secs(3), "{waited:?}");
    drop(release);
    join_all(busy).await;
    assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.status, 404);
}

/// Takes every connection that requests could read with, until the sender is dropped.
async fn hold(api: &TestApi) -> (Vec<mpsc::Sender<()>>, Vec<tokio::task::JoinHandle<()>>) {
    let (mut release, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (sender, released) = mpsc::channel();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let store = api.store.clone();
        let work = async move {
            let read = store.read(move |_| {
                let _ = started.send(());
                let _ = released.recv();
                Ok::<_, StoreError>(())
            });
            read.await.unwrap();
        };
        busy.push(tokio::spawn(work));
        has_started.await.unwrap();
        release.push(sender);
    }
    (release, busy)
}

/// An API with a run to redeliver, which reaches its PostgreSQL through a line that can be disturbed.
async fn behind_a_proxy() -> (TestApi, Proxy) {
    let database = TestDatabase::new(Engine::Postgres);
    let proxy = Proxy::start(database.server()).await;
    let url = database.url_through(proxy.addr);
    let mut api = TestApi::at(database, &url, Limits::default()).await;
    api.delivered_run().await;
    (api, proxy)
}

/// Many requests at once of every kind: read, written, accepted in a batch, with a token that is known and with one
/// that must be looked up. All are answered 503 within five seconds.
async fn all_are_told_to_come_again_in_time(api: &TestApi) {
    let asked = Instant::now();
    let unknown = format!("rf_live_{}", "0".repeat(64));
    let run = format!("/v1/runs/{RUN}");
    let requests = (0..8).flat_map(|_| {
        [
            api.request(Method::GET, &run),
            api.put(&run, SUCCEEDED),
            api.request(Method::POST, &redeliveries(RUN)),
            api.bare(Method::GET, &run).bearer_auth(&unknown),
        ]
    });
    let replies = join_all(requests.map(send));
    let (replies, health) = tokio::join!(replies, api.get("/v1/health"));
    let took = asked.elapsed();
    replies.iter().for_each(assert_unavailable);
    assert_eq!(health.status, 200);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A redelivery is accepted again, however the ones before ended that were told to come again.
async fn works_again(api: &mut TestApi) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let reply = loop {
        let reply = api.redeliver().await;
        if reply.status != 503 {
            break reply;
        }
        assert!(Instant::now() < deadline, "still unavailable");
    };
    // One of the requests before may have been committed after its client was told to come again.
    assert!(reply.status == 201 || reply.invalid() == ["path.run_id conflict"], "{}", reply.text);
    let deliveries = api.record().await.1;
    assert_eq!(deliveries.len(), 2, "the automatic one and one redelivery");
    while api.queue.try_next().is_some() {}
}

#[tokio::test]
async fn a_database_that_refuses_connections_is_answered_for_in_time() {
    let (api, proxy) = behind_a_proxy().await;
    drop(proxy);
    all_are_told_to_come_again_in_time(&api).await;
}

/// As when PostgreSQL's main process hangs: the kernel goes on accepting connections.
#[tokio::test]
async fn a_database_that_accepts_connections_and_says_nothing_is_answered_for_in_time() {
    let (mut api, proxy) = behind_a_proxy().await;
    proxy.swallow();
    all_are_told_to_come_again_in_time(&api).await;
    proxy.thaw();
    works_again(&mut api).await;
}

/// As when the host or its disk hangs: connections in use say nothing more, and are not closed either.
#[tokio::test]
async fn a_database_that_falls_silent_is_answered_for_in_time() {
    let (mut api, proxy) = behind_a_proxy().await;
    proxy.freeze();
    all_are_told_to_come_again_in_time(&api).await;
    // By now the threads that wait for it have used up the connections.
    all_are_told_to_come_again_in_time(&api).await;
    proxy.thaw();
    works_again(&mut api).await;
}

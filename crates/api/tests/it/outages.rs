//! Database outages, and rows that can't be shown.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use api::Limits;
use contracts::{Delivery, DeliveryStatus};
use futures_util::future::join_all;
use reqwest::Method;
use store::StoreError;
use testkit::{Backend, OnBackend, Proxy, TestDatabase};

use crate::harness::{CONNECTIONS, RUN, Reply, SUCCEEDED, TestApi, redeliveries, send};

testkit::on_both_backends!(
    an_internal_error_does_not_reveal_its_cause,
    while_all_connections_are_busy_a_request_fails_after_a_second,
);

/// PostgreSQL only: an open SQLite file does not go away.
#[tokio::test]
async fn without_its_database_the_api_asks_clients_to_retry() {
    let mut api = TestApi::on(Backend::Postgres).await;
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
    let mut api = TestApi::on(Backend::Postgres).await;
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

/// A full disk and a deadlock, in whatever language the server reports them.
#[tokio::test]
async fn while_its_database_rejects_writes_the_api_asks_clients_to_retry() {
    let mut api = TestApi::on(Backend::Postgres).await;
    api.delivered_run().await;
    let database = api.database.as_ref().expect("the database was dropped");
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

async fn an_internal_error_does_not_reveal_its_cause(mut api: TestApi) {
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
    let insert = move |tx: &mut _, _| {
        store::insert_delivery(tx, org, &broken, &"r".into()).map_err(store::StoreError::from)
    };
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

async fn while_all_connections_are_busy_a_request_fails_after_a_second(api: TestApi) {
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

/// Occupies every connection available to reads until the senders are dropped.
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

/// Returns an API with a run to redeliver, connected to PostgreSQL through a proxy that can disturb the
/// connection.
async fn behind_a_proxy() -> (TestApi, Proxy) {
    let database = TestDatabase::new(Backend::Postgres);
    let proxy = Proxy::start(database.server()).await;
    let url = database.url_through(proxy.addr);
    let mut api = TestApi::at(database, &url, Limits::default()).await;
    api.delivered_run().await;
    (api, proxy)
}

/// Sends many concurrent requests of every kind: reads, writes, redeliveries accepted in a batch, with a
/// cached token and with an unknown one. All get 503 within five seconds.
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

/// Checks that redeliveries are accepted again, whatever became of the earlier ones that got 503.
async fn works_again(api: &mut TestApi) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let reply = loop {
        let reply = api.redeliver().await;
        if reply.status != 503 {
            break reply;
        }
        assert!(Instant::now() < deadline, "still unavailable");
    };
    // An earlier redelivery may have been committed although its client got 503.
    assert!(reply.status == 201 || reply.invalid() == ["path.run_id conflict"], "{}", reply.text);
    let deliveries = api.record().await.1;
    assert_eq!(deliveries.len(), 2, "the automatic one and one redelivery");
    while api.queue.try_next().is_some() {}
}

#[tokio::test]
async fn requests_fail_in_time_if_the_database_refuses_connections() {
    let (api, proxy) = behind_a_proxy().await;
    drop(proxy);
    all_are_told_to_come_again_in_time(&api).await;
}

/// As if the main process of PostgreSQL hangs: the kernel still accepts connections.
#[tokio::test]
async fn requests_fail_in_time_if_the_database_accepts_connections_but_never_responds() {
    let (mut api, proxy) = behind_a_proxy().await;
    proxy.swallow();
    all_are_told_to_come_again_in_time(&api).await;
    proxy.thaw();
    works_again(&mut api).await;
}

/// As if the host or its disk hangs: open connections stop responding but are not closed.
#[tokio::test]
async fn requests_fail_in_time_if_the_database_stops_responding() {
    let (mut api, proxy) = behind_a_proxy().await;
    proxy.freeze();
    all_are_told_to_come_again_in_time(&api).await;
    // By now, waiting threads occupy all connections.
    all_are_told_to_come_again_in_time(&api).await;
    proxy.thaw();
    works_again(&mut api).await;
}

//! Two PostgreSQL servers, a primary and its synchronous standby, which takes over.

use std::time::Duration;

use ::store::{AnyConnection, DatabaseUrl, Store, StoreError, create_organization, migrate};
use contracts::Timestamp;
use diesel::connection::SimpleConnection;
use testkit::{Backend, Cluster, Proxy, TestDatabase, free_port};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::stage::number;

/// Far longer than anything here takes.
const LONGEST: Duration = Duration::from_secs(60);

/// A migrated primary and its standby.
async fn pair() -> (Cluster, Cluster) {
    let start = || {
        let primary = Cluster::start().unwrap();
        let url: DatabaseUrl = primary.url("postgres").parse().unwrap();
        migrate(&mut url.connect().unwrap()).unwrap();
        let standby = primary.standby(free_port()).unwrap();
        (primary, standby)
    };
    spawn_blocking(start).await.unwrap()
}

fn url(ports: [u16; 2]) -> DatabaseUrl {
    let [first, second] = ports;
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres").parse().unwrap()
}

/// The work of these tests: creates one organization.
fn make(tx: &mut AnyConnection, now: Timestamp) -> Result<(), StoreError> {
    create_organization(tx, now, "made").map(drop)
}

/// Repeats `make` until the database is available.
async fn made_again(store: &Store) {
    let until_available = async {
        while let Err(error) = store.write(make).await {
            assert!(error.is_outage(), "{error}");
        }
    };
    timeout(LONGEST, until_available).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_servers_the_one_that_accepts_writes_is_used_whatever_their_order() {
    let (primary, standby) = pair().await;
    let ports = [primary.port(), standby.port()];
    let stores = [
        Store::open(&url(ports), 2).await.unwrap(),
        Store::open(&url([ports[1], ports[0]]), 2).await.unwrap(),
    ];
    for store in &stores {
        store.write(make).await.unwrap();
    }
    let fail_over = move || primary.kill().and_then(|()| standby.promote()).map(|()| standby);
    let _standby = spawn_blocking(fail_over).await.unwrap().unwrap();
    for store in &stores {
        made_again(store).await;
    }
}

/// Its connections stay open, and nothing else reports that they are of no use any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_hangs_is_left_once_another_server_has_taken_over() {
    let (primary, standby) = pair().await;
    let proxy = Proxy::start(([127, 0, 0, 1], primary.port()).into()).await;
    let url = url([proxy.addr.port(), standby.port()]);
    // With one connection, each transaction needs the one that hangs.
    let store = Store::open(&url, 1).await.unwrap();
    store.write(make).await.unwrap();
    proxy.freeze();
    let under_way = tokio::spawn({
        let store = store.clone();
        async move { store.write_within(LONGEST, make).await }
    });
    let _standby = spawn_blocking(move || standby.promote().map(|()| standby)).await.unwrap().unwrap();
    let error = timeout(LONGEST, under_way).await.unwrap().unwrap().unwrap_err();
    assert!(error.is_outage() && error.to_string().contains("another server"), "{error}");
    made_again(&store).await;
    let made = "SELECT count(*) FROM organizations WHERE name = 'made'";
    assert_eq!(number(&mut url.connect().unwrap(), made), 2);
}

#[tokio::test]
async fn a_slow_transaction_does_not_cause_its_server_to_be_left() {
    let database = TestDatabase::new(Backend::Postgres);
    let store = database.store().await;
    let slow = |tx: &mut AnyConnection, _| Ok::<_, StoreError>(tx.batch_execute("SELECT pg_sleep(3)")?);
    store.write(slow).await.unwrap();
}

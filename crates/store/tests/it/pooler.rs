//! Runs through PgBouncer in transaction mode, which may run each transaction in a different server session.

use ::store::{Redelivery, Store, StoreError, redeliver};
use testkit::{Backend, Pooler, TestDatabase};

use crate::stage::{POLICY, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_many_connections_share_a_few_sessions() {
    let mut stage = Stage::new(Backend::Postgres);
    let pooler = Pooler::start(&stage.database, "transaction");
    let stores = [
        Store::open(&pooler.url(&stage.database), 8).await.unwrap(),
        Store::open(&pooler.url(&stage.database), 8).await.unwrap(),
    ];
    let runs: Vec<_> = (0..200).map(|_| stage.run()).collect();
    let org = stage.org;
    // Twice as many at once as there are connections.
    for together in runs.chunks(32) {
        let asked = together.iter().enumerate().map(|(n, run)| {
            let (store, run) = (stores[n % 2].clone(), *run);
            tokio::spawn(async move {
                store.write(move |tx, now| redeliver(tx, now, &POLICY, org, run, "r".into())).await.unwrap()
            })
        });
        for answer in asked.collect::<Vec<_>>() {
            assert!(matches!(answer.await.unwrap(), Redelivery::Accepted(_)));
        }
    }
    for store in &stores {
        store.ping().await.unwrap();
        assert!(store.complete_until().await.unwrap().is_some());
        let counted = store.read(move |tx| ::store::count_deliveries(tx, org)).await.unwrap();
        assert_eq!(counted.values().sum::<i64>(), 200);
    }
}

/// It fails at connect, not at the first statement that was prepared in another session.
#[tokio::test]
async fn a_pooler_that_the_url_does_not_declare_is_refused_with_advice() {
    let database = TestDatabase::new(Backend::Postgres);
    let pooler = Pooler::start(&database, "transaction");
    let refused = pooler.undeclared(&database).connect().map(drop).unwrap_err().to_string();
    assert!(refused.contains("add pgbouncer=true to the database's url"), "{refused}");
    let refused = Store::open(&pooler.undeclared(&database), 2).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
}

//! The pool and its transactions: the state after failures of every kind.

use std::sync::{Arc, Barrier, mpsc};

use ::store::{
    AnyConnection, DatabaseUrl, Redelivery, Store, StoreError, claim_due, create_organization,
    find_organization, redeliver,
};
use contracts::{ClaimId, OrgId, RunId, Timestamp};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use testkit::Backend;

use crate::stage::{LEASE, POLICY, Stage, at_once, number, plan};

testkit::on_both_backends!(
    an_error_rolls_everything_back,
    a_panic_rolls_everything_back_and_leaves_the_pool_usable,
    a_transaction_commits_after_its_caller_was_dropped,
    a_transaction_rolls_back_after_its_caller_was_dropped,
    a_read_sees_one_snapshot_despite_concurrent_writes,
    use_cases_get_the_time_of_the_clock,
    a_caller_waits_for_a_busy_pool_until_its_timeout,
    no_connection_is_left_in_a_transaction,
);

/// The work of these tests: creates one organization.
fn make(tx: &mut AnyConnection, now: Timestamp) -> Result<OrgId, StoreError> {
    Ok(create_organization(tx, now, "made")?.id)
}

fn made(stage: &mut Stage) -> i64 {
    stage.number("SELECT count(*) FROM organizations WHERE name = 'made'")
}

fn broken() -> StoreError {
    StoreError::Schema("on purpose".into())
}

async fn panicking(store: &Store) {
    let work = |tx: &mut _, now| {
        make(tx, now)?;
        panic!("on purpose");
    };
    assert!(matches!(store.write::<(), StoreError, _>(work).await, Err(StoreError::Panicked)));
}

async fn an_error_rolls_everything_back(backend: Backend) {
    let mut stage = Stage::new(backend);
    let store = stage.store().await;
    for _ in 0..20 {
        let refused = store.write(|tx, now| make(tx, now).and(Err::<(), _>(broken()))).await;
        assert!(matches!(refused, Err(StoreError::Schema(_))));
    }
    assert_eq!(made(&mut stage), 0);
    store.write(make).await.unwrap();
    assert_eq!(made(&mut stage), 1);
}

async fn a_panic_rolls_everything_back_and_leaves_the_pool_usable(backend: Backend) {
    let mut stage = Stage::new(backend);
    let store = stage.store().await;
    for _ in 0..10 {
        panicking(&store).await;
        let refused = store.read::<(), StoreError, _>(|_| panic!("on purpose")).await;
        assert!(matches!(refused, Err(StoreError::Panicked)));
    }
    assert_eq!(made(&mut stage), 0);
    let made_now = at_once(&store, 10, make).await;
    assert_eq!(made_now.len(), 10);
    store.ping().await.unwrap();
}

/// It is not an outage of the database.
async fn a_caller_waits_for_a_busy_pool_until_its_timeout(backend: Backend) {
    let stage = Stage::new(backend);
    let store = Store::open(stage.database.url(), 1).await.unwrap();
    let (release, released) = mpsc::channel::<()>();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let holding = tokio::spawn({
        let store = store.clone();
        async move {
            let hold = move |_: &mut AnyConnection, _| {
                started.send(()).unwrap();
                released.recv().map_err(|_| broken())
            };
            store.write(hold).await
        }
    });
    has_started.await.unwrap();
    let patient = tokio::spawn({
        let store = store.clone();
        async move { store.write_within(std::time::Duration::from_secs(60), make).await }
    });
    assert!(matches!(store.write(make).await, Err(StoreError::Busy)));
    assert!(!patient.is_finished());
    release.send(()).unwrap();
    holding.await.unwrap().unwrap();
    patient.await.unwrap().unwrap();
}

/// Starts a transaction, drops its future halfway, and lets the transaction continue to `end`.
async fn abandoned(stage: &Stage, end: Result<(), StoreError>) {
    // One connection: the store's next use is served after the transaction has ended.
    let store = Store::open(stage.database.url(), 1).await.unwrap();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let task = tokio::spawn({
        let store = store.clone();
        async move {
            store
                .write(move |tx, now| {
                    make(tx, now)?;
                    started.send(()).unwrap();
                    released.recv().unwrap();
                    end
                })
                .await
        }
    });
    has_started.await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    release.send(()).unwrap();
    store.write(|_, _| Ok::<_, StoreError>(())).await.unwrap();
}

async fn a_transaction_commits_after_its_caller_was_dropped(backend: Backend) {
    let mut stage = Stage::new(backend);
    abandoned(&stage, Ok(())).await;
    assert_eq!(made(&mut stage), 1);
}

async fn a_transaction_rolls_back_after_its_caller_was_dropped(backend: Backend) {
    let mut stage = Stage::new(backend);
    abandoned(&stage, Err(broken())).await;
    assert_eq!(made(&mut stage), 0);
}

async fn a_read_sees_one_snapshot_despite_concurrent_writes(backend: Backend) {
    let stage = Stage::new(backend);
    let store = stage.store().await;
    let (mut other, now) = (stage.database.url().connect().unwrap(), stage.now);
    let read = move |tx: &mut AnyConnection| {
        let count = |tx: &mut AnyConnection| number(tx, "SELECT count(*) FROM organizations");
        let before = count(tx);
        let id = make(&mut other, now)?;
        assert_eq!(count(tx), before);
        assert_eq!(find_organization(tx, id)?, None);
        Ok::<_, StoreError>(id)
    };
    let id = store.read(read).await.unwrap();
    let found = store.read(move |tx| find_organization(tx, id)).await.unwrap();
    assert!(found.is_some());
}

async fn use_cases_get_the_time_of_the_clock(backend: Backend) {
    let stage = Stage::new(backend);
    let store = stage.store().await;
    let seen = |store: Store| async move { store.write(|_, now| Ok::<_, StoreError>(now)).await.unwrap() };
    assert_eq!(seen(store.clone()).await, stage.now);
    store.clock().advance(std::time::Duration::from_micros(1));
    assert_eq!(seen(store).await, stage.now + std::time::Duration::from_micros(1));
}

async fn no_connection_is_left_in_a_transaction(backend: Backend) {
    let mut stage = Stage::new(backend);
    let store = stage.store().await;
    at_once(&store, 10, make).await;
    let _ = store.write(|tx, now| make(tx, now).and(Err::<(), _>(broken()))).await;
    let _ = store.read(|_| Err::<(), _>(broken())).await;
    let refused = store.write(|tx, _| Ok::<_, StoreError>(tx.batch_execute("SELECT nothing")?)).await;
    assert!(!refused.unwrap_err().is_outage());
    panicking(&store).await;
    match backend {
        // The single writer is available immediately.
        Backend::Sqlite => {
            stage.conn.batch_execute("PRAGMA busy_timeout = 0; BEGIN IMMEDIATE; ROLLBACK").unwrap();
        }
        Backend::Postgres => {
            let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND pid <> pg_backend_pid() AND xact_start IS NOT NULL";
            // The panicking transaction's connection was closed; its server process ends asynchronously.
            let gone = (0..10_000).any(|_| stage.number(open) == 0);
            assert!(gone, "nobody is in a transaction");
        }
    }
}

/// Opens as many simultaneous transactions as the pool has connections.
async fn use_every_connection(store: &Store) {
    let together = Arc::new(Barrier::new(8));
    at_once(store, 8, move |tx, _| {
        together.wait();
        Ok::<_, StoreError>(tx.batch_execute("SELECT 1")?)
    })
    .await;
}

#[tokio::test]
async fn connections_closed_by_the_server_are_replaced_without_an_error() {
    let mut stage = Stage::new(Backend::Postgres);
    let store = stage.store().await;
    let others =
        "FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
        AND pid <> pg_backend_pid()";
    for _ in 0..3 {
        use_every_connection(&store).await;
        // Terminates all, then waits for each: the waiting function polls only every 100 ms.
        assert!(stage.number(&format!("SELECT count(pg_terminate_backend(pid)) {others}")) >= 8);
        stage.number(&format!("SELECT count(pg_terminate_backend(pid, 5000)) {others}"));
        at_once(&store, 16, make).await;
        store.ping().await.unwrap();
    }
    assert_eq!(made(&mut stage), 48);
}

#[tokio::test]
async fn a_connection_ended_within_a_transaction_is_an_outage_for_its_caller_only() {
    let mut stage = Stage::new(Backend::Postgres);
    let store = stage.store().await;
    let suicide = |tx: &mut AnyConnection, now| {
        make(tx, now)?;
        Ok::<_, StoreError>(tx.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")?)
    };
    for _ in 0..10 {
        let error = store.write(suicide).await.unwrap_err();
        assert!(error.is_outage(), "{error:?}");
    }
    assert_eq!(made(&mut stage), 0);
    at_once(&store, 16, make).await;
}

/// Terminates the connection from outside, so that its next statement fails.
fn cut(tx: &mut AnyConnection, url: &DatabaseUrl) {
    let pid = number(tx, "SELECT pg_backend_pid()::bigint");
    number(&mut url.connect().unwrap(), &format!("SELECT count(pg_terminate_backend({pid}, 5000))"));
}

#[tokio::test]
async fn a_dead_connection_is_an_outage_whatever_the_next_statement_is() {
    let mut stage = Stage::new(Backend::Postgres);
    let (store, org, run) = (stage.store().await, stage.org, stage.run());
    type Next = fn(&mut AnyConnection, Timestamp, OrgId, RunId) -> Result<(), StoreError>;
    let statements: [(&str, Next); 5] = [
        ("statement", |tx, now, _, _| make(tx, now).map(drop)),
        ("savepoint", |tx, now, org, run| redeliver(tx, now, &POLICY, org, run, "req".into()).map(drop)),
        ("batch", |tx, now, _, _| {
            claim_due(tx, now, LEASE, ClaimId::new(now), &plan(1)).map(drop).map_err(|refused| refused.error)
        }),
        ("error of the work's own", |_, _, _, _| Err(StoreError::Unavailable("its own".into()))),
        ("commit", |_, _, _, _| Ok(())),
    ];
    for (what, next) in statements {
        let url = stage.database.url().clone();
        let work = move |tx: &mut AnyConnection, now| {
            make(tx, now)?;
            cut(tx, &url);
            next(tx, now, org, run)
        };
        let error = store.write(work).await.unwrap_err();
        assert!(error.is_outage(), "{what}: {error:?}");
    }
    // Also inside a savepoint, whose rollback fails too.
    let url = stage.database.url().clone();
    let work = move |tx: &mut AnyConnection, now| {
        tx.transaction(|tx| {
            cut(tx, &url);
            make(tx, now)
        })
    };
    let error = store.write(work).await.unwrap_err();
    assert!(error.is_outage(), "{error:?}");
    assert_eq!(made(&mut stage), 0);
    at_once(&store, 16, make).await;
}

/// Its caller may no longer be waiting.
#[tokio::test]
async fn statements_time_out_after_30_seconds() {
    let stage = Stage::new(Backend::Postgres);
    let store = stage.store().await;
    let limit = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'";
    let limit = store.read(move |tx| Ok::<_, StoreError>(number(tx, limit))).await.unwrap();
    assert_eq!(limit, 30_000);
}

/// A server, a database or a role may have a different default.
#[tokio::test]
async fn the_default_isolation_level_does_not_matter() {
    let mut stage = Stage::new(Backend::Postgres);
    stage
        .sql("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''',
            current_database()); END $$")
        .unwrap();
    let (org, run) = (stage.org, stage.run());
    let answers =
        at_once(&stage.store().await, 8, move |tx, now| redeliver(tx, now, &POLICY, org, run, "req".into()))
            .await;
    let accepted = answers.iter().filter(|answer| matches!(answer, Redelivery::Accepted(_)));
    assert_eq!(accepted.count(), 1);
}

/// Without `pg_read_all_stats`, a role sees only the transactions of its own sessions.
#[tokio::test]
async fn transactions_hidden_from_this_role_bound_complete_until() {
    let stage = Stage::new(Backend::Postgres); // its connection belongs to another role
    let minute = std::time::Duration::from_secs(60);
    let DatabaseUrl::Postgres(url) = stage.database.url() else { panic!("a PostgreSQL URL") };
    let joint = if url.contains('?') { '&' } else { '?' };
    let blind = format!("{url}{joint}options=-c%20role%3Dpg_read_all_data").parse().unwrap();
    for (url, is_blind) in [(stage.database.url(), false), (&blind, true)] {
        let store = Store::open(url, 2).await.unwrap();
        let until = store.complete_until().await.unwrap().expect("PostgreSQL has a bound");
        assert_eq!(until < store.clock().now() - minute, is_blind, "{until:?}");
    }
}

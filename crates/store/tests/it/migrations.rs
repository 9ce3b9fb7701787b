//! Migrates the schema, and refuses to use an incompatible one.

use std::fmt::Write as _;
use std::time::Duration;

use ::store::{MIGRATIONS, Migration, Store, StoreError, migrate, migrate_to};
use contracts::{DeliveryId, DeliveryStatus, Destination, FailureReason};
use diesel::connection::SimpleConnection;
use testkit::{Backend, TestDatabase};
use uuid::Uuid;

use crate::stage::{Stage, URL};

testkit::on_both_backends!(
    a_fresh_database_is_migrated_and_a_second_time_changes_nothing,
    concurrent_migrations_of_a_fresh_database_all_succeed,
    a_newer_schema_that_states_no_oldest_program_is_refused,
    a_newer_schema_is_used_if_it_admits_this_program_and_refused_if_it_does_not,
    an_older_schema_is_refused_with_advice_and_can_then_be_migrated,
    deliveries_of_the_first_schema_get_their_hosts_and_open_ones_their_destinations,
);

/// Returns the names of all migrations, latest first.
fn migrations() -> Vec<String> {
    let entries = std::fs::read_dir("../../migrations").unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names
}

async fn a_fresh_database_is_migrated_and_a_second_time_changes_nothing(backend: Backend) {
    let database = TestDatabase::empty(backend);
    let mut conn = database.url().connect().unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), migrations().len());
    assert_eq!(migrate(&mut conn).unwrap(), 0);
    database.store().await.ping().await.unwrap();
}

async fn concurrent_migrations_of_a_fresh_database_all_succeed(backend: Backend) {
    let database = TestDatabase::empty(backend);
    let together = std::sync::Barrier::new(4);
    let connect_and_migrate = || {
        together.wait();
        migrate(&mut database.url().connect().expect("connected")).expect("migrated")
    };
    let applied: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(connect_and_migrate)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(applied, migrations().len());
}

async fn a_newer_schema_that_states_no_oldest_program_is_refused(backend: Backend) {
    let mut stage = Stage::new(backend);
    stage.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").unwrap();
    refused(&mut stage).await;
}

async fn refused(stage: &mut Stage) {
    let refusals = [migrate(&mut stage.conn).map(drop), Store::open(stage.database.url(), 2).await.map(drop)];
    for refusal in refusals {
        let StoreError::Schema(advice) = refusal.unwrap_err() else { panic!("refused for its schema") };
        assert!(advice.contains("newer") && advice.contains("update redial"), "{advice}");
    }
}

/// Returns the migrations of a later program.
fn with(later: &[Migration]) -> Vec<Migration> {
    MIGRATIONS.iter().chain(later).copied().collect()
}

const EXPANDING: Migration =
    Migration::new(100, "-- Oldest program: 16\nALTER TABLE runs ADD COLUMN priority integer;\n");
const CONTRACTING: Migration =
    Migration::new(101, "-- Oldest program: 100\nALTER TABLE runs DROP COLUMN priority;\n");

async fn a_newer_schema_is_used_if_it_admits_this_program_and_refused_if_it_does_not(backend: Backend) {
    let mut stage = Stage::new(backend);
    let store = stage.store().await;
    assert_eq!(migrate_to(&mut stage.conn, &with(&[EXPANDING])).unwrap(), 1);
    assert_eq!(migrate(&mut stage.conn).unwrap(), 0);
    Store::open(stage.database.url(), 2).await.unwrap().ping().await.unwrap();
    stage.accept();

    let looks =
        tokio::spawn(async move { store.keep_aligned(tokio_util::sync::CancellationToken::new()).await });
    assert_eq!(migrate_to(&mut stage.conn, &with(&[EXPANDING, CONTRACTING])).unwrap(), 1);
    refused(&mut stage).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), looks).await.expect("it looks now and then");
    let Err(StoreError::Schema(reason)) = ended.unwrap() else { panic!("refused for its schema") };
    assert!(reason.contains("programs from schema 100 on"), "{reason}");
}

/// The numbers in the program match the folders, and each migration states its oldest program.
#[test]
fn every_migration_matches_its_folder_and_states_its_oldest_program() {
    let mut folders = migrations();
    folders.reverse();
    let numbers: Vec<i64> = folders.iter().map(|name| name[..14].parse().unwrap()).collect();
    assert_eq!(MIGRATIONS.iter().map(|migration| migration.number).collect::<Vec<_>>(), numbers);
    for (migration, folder) in MIGRATIONS.iter().zip(&folders) {
        assert_eq!(
            migration.up,
            std::fs::read_to_string(format!("../../migrations/{folder}/up.sql")).unwrap()
        );
        assert!(migration.number <= 8 || migration.up.starts_with("-- Oldest program: "), "{folder}");
        assert!(migration.up.trim_end().ends_with(';'), "{folder}: its last statement has an end");
    }
}

/// A migration that waits for several busy tables in turn does not block other sessions on them.
#[tokio::test]
async fn a_migration_that_waits_for_a_busy_table_does_not_block_other_sessions() {
    const MANY_TABLES: Migration = Migration::new(
        100,
        "-- Oldest program: 16
         ALTER TABLE organizations ADD COLUMN priority integer;
         ALTER TABLE attempts ADD COLUMN priority integer;
         ALTER TABLE deliveries ADD COLUMN priority integer;
         ALTER TABLE runs ADD COLUMN priority integer;\n",
    );
    let mut stage = Stage::new(Backend::Postgres);
    let mut busy = stage.database.url().connect().unwrap();
    busy.batch_execute("BEGIN; LOCK TABLE runs IN ROW EXCLUSIVE MODE").unwrap();
    let url = stage.database.url().clone();
    let migrating =
        std::thread::spawn(move || migrate_to(&mut url.connect().unwrap(), &with(&[MANY_TABLES])).unwrap());
    // Other sessions make progress while the table is busy.
    let mut waited = Duration::ZERO;
    for _ in 0..30 {
        let began = std::time::Instant::now();
        stage.accept();
        waited = waited.max(began.elapsed());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    busy.batch_execute("ROLLBACK").unwrap();
    assert_eq!(migrating.join().unwrap(), 1);
}

/// As after a kill in the middle of the build.
#[tokio::test]
async fn an_incomplete_index_is_built_again() {
    const INDEX: Migration = Migration::new(
        100,
        "-- Oldest program: 13\nCREATE INDEX CONCURRENTLY runs_by_duration ON runs (duration_ms);\n",
    );
    let mut stage = Stage::new(Backend::Postgres);
    stage.accept_many(3);
    // A build that fails leaves an invalid index.
    stage.sql("CREATE UNIQUE INDEX CONCURRENTLY runs_by_duration ON runs ((1))").unwrap_err();
    assert_eq!(stage.count("pg_index WHERE indexrelid = 'runs_by_duration'::regclass AND NOT indisvalid"), 1);
    assert_eq!(migrate_to(&mut stage.conn, &with(&[INDEX])).unwrap(), 1);
    assert_eq!(stage.count("pg_index WHERE indexrelid = 'runs_by_duration'::regclass AND indisvalid"), 1);
    assert_eq!(migrate_to(&mut stage.conn, &with(&[INDEX])).unwrap(), 0);
}

/// The index exists then, but is invalid.
#[tokio::test]
async fn an_index_whose_build_was_interrupted_by_a_lock_is_built_again() {
    const INDEX: Migration = Migration::new(
        100,
        "-- Oldest program: 13\nCREATE INDEX CONCURRENTLY runs_by_duration ON runs (duration_ms);\n",
    );
    let mut stage = Stage::new(Backend::Postgres);
    let mut busy = stage.database.url().connect().unwrap();
    busy.batch_execute("BEGIN; LOCK TABLE runs IN ROW EXCLUSIVE MODE").unwrap();
    let url = stage.database.url().clone();
    let migrating =
        std::thread::spawn(move || migrate_to(&mut url.connect().unwrap(), &with(&[INDEX])).unwrap());
    let left = "pg_class WHERE relname = 'runs_by_duration'";
    let began = std::time::Instant::now();
    while stage.count(left) == 0
        || stage.count("pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND state = 'active'") > 0
    {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing was cut short");
    }
    busy.batch_execute("ROLLBACK").unwrap();
    assert_eq!(migrating.join().unwrap(), 1);
    assert_eq!(stage.count("pg_index WHERE indexrelid = 'runs_by_duration'::regclass AND indisvalid"), 1);
}

/// Retrying does not help against invalid data.
#[tokio::test]
async fn a_migration_that_the_data_violates_fails_immediately() {
    const CHECKED: Migration = Migration::new(
        100,
        "-- Oldest program: 13
         SELECT pg_sleep(0.5);
         ALTER TABLE organizations ADD CONSTRAINT nameless CHECK (name = '');\n",
    );
    let mut stage = Stage::new(Backend::Postgres);
    let refused = migrate_to(&mut stage.conn, &with(&[CHECKED])).unwrap_err();
    assert!(refused.is_violation(), "{refused}");
}

/// Twelve concurrent transactions of one organization: a lock that they share would create multixacts.
#[tokio::test]
async fn putting_runs_locks_no_row_that_others_of_the_organization_lock() {
    let mut stage = Stage::new(Backend::Postgres);
    ::store::create_secret(&mut stage.conn, stage.now, &testkit::keyring(), stage.org, None).unwrap();
    let (org, now, url) = (stage.org, stage.now, stage.database.url().clone());
    // A row's xmax is its last locker: one transaction, or several at once as a multixact.
    let mut lockers = || {
        let of = |table| format!("SELECT coalesce(sum(xmax::text::bigint), 0)::bigint FROM {table}");
        ["organizations", "signing_secrets"].map(|table| stage.number(&of(table)))
    };
    let before = lockers();
    let together = std::sync::Barrier::new(12);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut conn = url.connect().unwrap();
                for _ in 0..20 {
                    let run = crate::stage::new_run();
                    conn.batch_execute("BEGIN").unwrap();
                    let update = testkit::terminal_run(URL);
                    let deliver = ::store::Deliver::Automatically;
                    ::store::record_run(
                        &mut conn,
                        now,
                        &crate::stage::POLICY,
                        deliver,
                        (org, run),
                        &update,
                        &"r".into(),
                    )
                    .unwrap();
                    together.wait(); // all hold their locks now
                    conn.batch_execute("COMMIT").unwrap();
                }
            });
        }
    });
    assert_eq!(lockers(), before);
}

async fn an_older_schema_is_refused_with_advice_and_can_then_be_migrated(backend: Backend) {
    let database = TestDatabase::empty(backend);
    let refusal = Store::open(database.url(), 2).await.map(drop).unwrap_err();
    let StoreError::Schema(advice) = refusal else { panic!("refused for its schema") };
    assert!(advice.contains("`redial migrate`"), "{advice}");
    assert_eq!(migrate(&mut database.url().connect().unwrap()).unwrap(), migrations().len());
    Store::open(database.url(), 2).await.map(drop).unwrap();
}

async fn deliveries_of_the_first_schema_get_their_hosts_and_open_ones_their_destinations(backend: Backend) {
    const OTHER_URL: &str = "https://other.example.com/";
    let database = TestDatabase::empty(backend);
    let mut conn = database.url().connect().unwrap();
    migrate_to(&mut conn, &MIGRATIONS[..1]).unwrap();
    let mut stage = Stage::on(database, conn);
    let count = 1_001; // more than one batch
    let ids: Vec<Uuid> = (0..=count).map(|_| Uuid::new_v4()).collect();
    let (org, now) = (stage.literal(stage.org.0), stage.moment(stage.now));
    let mut rows = format!(
        "INSERT INTO organizations VALUES ({org}, 'first', {now});
         BEGIN;"
    );
    for (n, id) in ids.iter().enumerate() {
        let (id, url) = (stage.literal(*id), if n == count { OTHER_URL } else { URL });
        let payload = match backend {
            Backend::Postgres => "'{}'",
            Backend::Sqlite => "X'7b7d'",
        };
        let state = match n {
            0 | 3 => {
                format!("'failed', 'gone', 'as told', 3, 8, NULL, NULL, NULL, NULL, 'r', {now}, {now}, {now}")
            }
            1 => format!("'delivering', NULL, NULL, 1, 8, NULL, {now}, {id}, {now}, 'r', {now}, {now}, NULL"),
            _ => format!("'pending', NULL, NULL, 0, 8, {now}, {now}, NULL, NULL, 'r', {now}, {now}, NULL"),
        };
        write!(
            rows,
            "INSERT INTO runs (org_id, id, status_code, created_at, completed_at, updated_at)
                 VALUES ({org}, {id}, 'succeeded', {now}, {now}, {now});
             INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, is_automatic, status_code,
                     failure_reason_code, failure_detail, attempt_count, max_attempts, next_attempt_at, wake_at, claim_id,
                     claimed_at, request_id, created_at, updated_at, completed_at)
                 VALUES ({id}, {org}, {id}, '{url}', {payload}, FALSE, {state});"
        )
        .unwrap();
    }
    stage.conn.batch_execute(&(rows + "COMMIT")).unwrap();

    // Programs of the previous version run until the last step: one delivery ends meanwhile, one is pruned.
    let filled = MIGRATIONS.iter().position(|migration| migration.number == 16).unwrap();
    assert_eq!(migrate_to(&mut stage.conn, &MIGRATIONS[..filled]).unwrap(), filled - 1);
    let [pruned, ends] = [3, 4].map(|n| stage.literal(ids[n]));
    let end = format!(
        "UPDATE deliveries SET status_code = 'succeeded', attempt_count = 1, next_attempt_at = NULL, wake_at = NULL,
             completed_at = {now} WHERE id = {ends}"
    );
    stage.sql(&end).unwrap();
    stage.sql(&format!("DELETE FROM deliveries WHERE id = {pruned}")).unwrap();
    assert_eq!(migrate(&mut stage.conn).unwrap(), migrations().len() - filled);
    assert_eq!(stage.delivery(DeliveryId(ids[4])).status_code, DeliveryStatus::Succeeded);
    assert_eq!(stage.count("ended_deliveries"), 2);
    let count = i64::try_from(count).unwrap() - 1;
    let of_host = "delivery_states WHERE callback_host = 'hooks.example.com'";
    assert_eq!(stage.count(of_host), count);
    let to =
        |destination: Destination| format!("open_deliveries WHERE destination = {}", destination.as_i64());
    let (first, second) = (stage.destination(URL), stage.destination(OTHER_URL));
    assert_eq!(stage.count(&to(first)), count - 2);
    assert_eq!(stage.count(&to(second)), 1);
    let ended = stage.delivery(DeliveryId(ids[0]));
    assert_eq!((ended.status_code, ended.attempt_count), (DeliveryStatus::Failed, 3));
    assert_eq!(ended.failure_reason_code, Some(FailureReason::Gone));
    assert_eq!(stage.delivery(DeliveryId(ids[1])).status_code, DeliveryStatus::Delivering);
    assert_eq!(stage.claim_due(2000).len(), 998, "the relay finds those that wait");
}

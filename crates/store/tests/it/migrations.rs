//! Bringing the schema up to date, and refusing to work on another one.

use std::time::Duration;

use ::store::{MIGRATIONS, Migration, Store, StoreError, migrate, migrate_to};
use contracts::Destination;
use diesel::connection::SimpleConnection;
use testkit::{Engine, TestDatabase};

use crate::stage::{GRACE, Stage, URL, on_both_engines, succeeded};

on_both_engines!(
    a_fresh_database_is_migrated_and_a_second_time_changes_nothing,
    several_that_migrate_a_fresh_database_at_once_all_succeed,
    a_newer_schema_that_says_nothing_is_refused,
    a_newer_schema_that_admits_this_program_is_worked_on_and_one_that_does_not_is_refused,
    an_older_schema_is_refused_with_advice_and_can_then_be_migrated,
    deliveries_of_the_first_schema_get_their_hosts_and_open_ones_their_destinations,
);

/// The names of all migrations, the latest first.
fn migrations() -> Vec<String> {
    let entries = std::fs::read_dir("../../migrations").unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names
}

async fn a_fresh_database_is_migrated_and_a_second_time_changes_nothing(engine: Engine) {
    let database = TestDatabase::empty(engine);
    let mut conn = database.url().connect().unwrap();
    assert_eq!(migrate(&mut conn).unwrap(), migrations().len());
    assert_eq!(migrate(&mut conn).unwrap(), 0);
    database.store().await.ping().await.unwrap();
}

async fn several_that_migrate_a_fresh_database_at_once_all_succeed(engine: Engine) {
    let database = TestDatabase::empty(engine);
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

async fn a_newer_schema_that_says_nothing_is_refused(engine: Engine) {
    let mut stage = Stage::new(engine);
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

/// What a later program brings.
fn with(later: &[Migration]) -> Vec<Migration> {
    MIGRATIONS.iter().chain(later).copied().collect()
}

const EXPANDING: Migration =
    Migration::new(100, "-- Oldest program: 13\nALTER TABLE runs ADD COLUMN priority integer;\n");
const CONTRACTING: Migration =
    Migration::new(101, "-- Oldest program: 100\nALTER TABLE runs DROP COLUMN priority;\n");

async fn a_newer_schema_that_admits_this_program_is_worked_on_and_one_that_does_not_is_refused(
    engine: Engine,
) {
    let mut stage = Stage::new(engine);
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

/// The numbers in the program are those of the folders, and each states the oldest program.
#[test]
fn every_migration_is_in_its_place() {
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

/// Tables that somebody works on are not kept from others while a migration waits for them, one after the other.
#[tokio::test]
async fn a_migration_lets_others_pass_while_a_table_is_busy() {
    const MANY_TABLES: Migration = Migration::new(
        100,
        "-- Oldest program: 13
         ALTER TABLE organizations ADD COLUMN priority integer;
         ALTER TABLE attempts ADD COLUMN priority integer;
         ALTER TABLE deliveries ADD COLUMN priority integer;
         ALTER TABLE runs ADD COLUMN priority integer;\n",
    );
    let mut stage = Stage::new(Engine::Postgres);
    let mut busy = stage.database.url().connect().unwrap();
    busy.batch_execute("BEGIN; LOCK TABLE runs IN ROW EXCLUSIVE MODE").unwrap();
    let url = stage.database.url().clone();
    let migrating =
        std::thread::spawn(move || migrate_to(&mut url.connect().unwrap(), &with(&[MANY_TABLES])).unwrap());
    // Others have their turns as long as the table is busy.
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

/// As after a kill in the middle of it.
#[tokio::test]
async fn an_index_that_was_not_built_to_its_end_is_built_again() {
    const INDEX: Migration = Migration::new(
        100,
        "-- Oldest program: 13\nCREATE INDEX CONCURRENTLY runs_by_duration ON runs (duration_ms);\n",
    );
    let mut stage = Stage::new(Engine::Postgres);
    stage.accept_many(3);
    // One that fails on the way stays there, and is of no use.
    stage.sql("CREATE UNIQUE INDEX CONCURRENTLY runs_by_duration ON runs ((1))").unwrap_err();
    assert_eq!(stage.count("pg_index WHERE indexrelid = 'runs_by_duration'::regclass AND NOT indisvalid"), 1);
    assert_eq!(migrate_to(&mut stage.conn, &with(&[INDEX])).unwrap(), 1);
    assert_eq!(stage.count("pg_index WHERE indexrelid = 'runs_by_duration'::regclass AND indisvalid"), 1);
    assert_eq!(migrate_to(&mut stage.conn, &with(&[INDEX])).unwrap(), 0);
}

/// The index is there then, and invalid.
#[tokio::test]
async fn an_index_whose_building_was_cut_short_by_a_lock_is_built_again() {
    const INDEX: Migration = Migration::new(
        100,
        "-- Oldest program: 13\nCREATE INDEX CONCURRENTLY runs_by_duration ON runs (duration_ms);\n",
    );
    let mut stage = Stage::new(Engine::Postgres);
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

/// What is wrong with the data does not pass.
#[tokio::test]
async fn a_migration_that_the_data_forbids_fails_at_once() {
    const CHECKED: Migration = Migration::new(
        100,
        "-- Oldest program: 13
         SELECT pg_sleep(0.5);
         ALTER TABLE organizations ADD CONSTRAINT nameless CHECK (name = '');\n",
    );
    let mut stage = Stage::new(Engine::Postgres);
    let refused = migrate_to(&mut stage.conn, &with(&[CHECKED])).unwrap_err();
    assert!(refused.is_violation(), "{refused}");
}

/// Twelve of one organization at once: what they lock in common would make multixacts.
#[tokio::test]
async fn putting_runs_locks_no_row_that_others_of_the_organization_lock() {
    let mut stage = Stage::new(Engine::Postgres);
    ::store::create_secret(&mut stage.conn, stage.now, &testkit::keyring(), stage.org, None).unwrap();
    let (org, now, url) = (stage.org, stage.now, stage.database.url().clone());
    // Who has locked a row last stands in its xmax: one that came before, or several at once as a multixact.
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
                        "r",
                    )
                    .unwrap();
                    together.wait(); // all have their locks now
                    conn.batch_execute("COMMIT").unwrap();
                }
            });
        }
    });
    assert_eq!(lockers(), before);
}

async fn an_older_schema_is_refused_with_advice_and_can_then_be_migrated(engine: Engine) {
    let database = TestDatabase::empty(engine);
    let refusal = Store::open(database.url(), 2).await.map(drop).unwrap_err();
    let StoreError::Schema(advice) = refusal else { panic!("refused for its schema") };
    assert!(advice.contains("`redial migrate`"), "{advice}");
    assert_eq!(migrate(&mut database.url().connect().unwrap()).unwrap(), migrations().len());
    Store::open(database.url(), 2).await.map(drop).unwrap();
}

async fn deliveries_of_the_first_schema_get_their_hosts_and_open_ones_their_destinations(engine: Engine) {
    let mut stage = Stage::new(engine);
    let count = 1_001; // more than are filled in at once
    stage.accept_many(count);
    let ended = stage.claimed();
    stage.finish_one(succeeded(&ended));
    let other = stage.accept_to("https://other.example.com/").id;
    let mut later = migrations();
    later.pop(); // the first
    for later in &later {
        let down = std::fs::read_to_string(format!("../../migrations/{later}/down.sql")).unwrap();
        for statement in down.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
            stage.sql(statement).unwrap();
        }
    }
    stage.sql("DELETE FROM __diesel_schema_migrations WHERE version > '00000000000001'").unwrap();
    assert_eq!(migrate(&mut stage.conn).unwrap(), later.len());
    let filled = "SELECT count(*) FROM deliveries WHERE callback_host = 'hooks.example.com'";
    assert_eq!(stage.number(filled), i64::try_from(count).unwrap() + 1);
    let to = |destination: Destination| format!("deliveries WHERE destination = {}", destination.as_i64());
    let (first, second) = (stage.destination(URL), stage.destination("https://other.example.com/"));
    assert_eq!(stage.count(&to(first)), i64::try_from(count).unwrap());
    assert_eq!(stage.count(&format!("{} AND id = {}", to(second), stage.literal(other.0))), 1);
    assert_eq!(stage.count("deliveries WHERE destination = 0 AND completed_at IS NOT NULL"), 1);
    stage.advance(GRACE);
    assert!(stage.claim_due(2000).len() > 1000, "the relay finds them");
}

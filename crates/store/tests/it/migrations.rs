//! Bringing the schema up to date, and refusing to work on another one.

use ::store::{Store, StoreError, migrate};
use contracts::Destination;
use testkit::{Engine, TestDatabase};

use crate::stage::{GRACE, Stage, URL, on_both_engines, succeeded};

on_both_engines!(
    a_fresh_database_is_migrated_and_a_second_time_changes_nothing,
    several_that_migrate_a_fresh_database_at_once_all_succeed,
    a_newer_schema_is_refused,
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

async fn a_newer_schema_is_refused(engine: Engine) {
    let mut stage = Stage::new(engine);
    stage.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')").unwrap();
    let refusals = [migrate(&mut stage.conn).map(drop), Store::open(stage.database.url(), 2).await.map(drop)];
    for refusal in refusals {
        let StoreError::Schema(advice) = refusal.unwrap_err() else { panic!("refused for its schema") };
        assert!(advice.contains("newer") && advice.contains("update redial"), "{advice}");
    }
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

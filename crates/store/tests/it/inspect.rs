//! Facts about a database are read without changing it.

use std::time::Duration;

use ::store::{
    DatabaseFacts, DatabaseUrl, SchemaState, StoreError, clock_offset, database_facts, schema_facts,
};
use diesel::connection::SimpleConnection;
use testkit::{Backend, Proxy, TestDatabase};

testkit::on_both_backends!(facts_are_read_before_and_after_the_migrations, writes_are_refused);

const LIMIT: Duration = Duration::from_secs(30);

async fn facts_are_read_before_and_after_the_migrations(backend: Backend) {
    let (empty, migrated) = (TestDatabase::empty(backend), TestDatabase::new(backend));
    if backend == Backend::Sqlite {
        empty.execute(""); // creates the file
    }
    for (database, state) in [(&empty, SchemaState::Older), (&migrated, SchemaState::Fits)] {
        let facts = database.url().inspect(LIMIT, schema_facts).await.unwrap();
        assert_eq!(facts.state, state);
        assert_eq!(facts.newest, (state == SchemaState::Fits).then_some(facts.known));
        let facts = database.url().inspect(LIMIT, database_facts).await.unwrap();
        match (backend, facts) {
            (Backend::Postgres, DatabaseFacts::Postgres(facts)) => {
                assert!(facts.version.starts_with(&facts.major_version.to_string()), "{facts:?}");
                assert_eq!((facts.encoding.as_str(), facts.is_standby), ("UTF8", false));
                assert!(facts.max_connections > facts.reserved_connections, "{facts:?}");
            }
            (Backend::Sqlite, DatabaseFacts::Sqlite { journal_mode, .. }) => assert_eq!(journal_mode, "wal"),
            (_, facts) => panic!("{facts:?}"),
        }
        // One host runs both.
        assert!(database.url().inspect(LIMIT, clock_offset).await.unwrap().abs() < 1.0);
    }
}

async fn writes_are_refused(backend: Backend) {
    let database = TestDatabase::new(backend);
    let write =
        |conn: &mut ::store::AnyConnection| Ok(conn.batch_execute("CREATE TABLE written (id integer)")?);
    let refused = database.url().inspect(LIMIT, write).await;
    assert!(matches!(refused, Err(StoreError::Query(_))), "{refused:?}");
}

#[tokio::test]
async fn a_missing_sqlite_file_is_not_created() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("is ?#% here.db");
    let url = DatabaseUrl::Sqlite(path.to_str().unwrap().to_owned());
    assert!(matches!(url.inspect(LIMIT, database_facts).await, Err(StoreError::Unavailable(_))));
    assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    drop(url.connect().unwrap());
    let facts = url.inspect(LIMIT, database_facts).await.unwrap();
    let file = path.canonicalize().unwrap().to_str().unwrap().to_owned();
    assert_eq!(facts, DatabaseFacts::Sqlite { file, journal_mode: "wal".into() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_an_outage_after_the_limit() {
    let database = TestDatabase::new(Backend::Postgres);
    let proxy = Proxy::start(database.server()).await;
    proxy.freeze();
    let url = database.url_through(proxy.addr);
    let silent = url.inspect(Duration::from_millis(100), database_facts).await;
    assert!(silent.unwrap_err().is_outage());
}

/// Settings that a session would change, and connections that are limited and in use.
#[tokio::test]
async fn what_an_administrator_has_set_is_found() {
    let database = TestDatabase::new(Backend::Postgres);
    let facts = async || match database.url().inspect(LIMIT, database_facts).await.unwrap() {
        DatabaseFacts::Postgres(facts) => facts,
        other => panic!("{other:?}"),
    };
    let before = facts().await;
    assert_eq!((before.is_read_only, before.own_sessions, before.hidden_sessions), (false, 0, 0));
    let _open = database.store().await;
    assert!(facts().await.own_sessions > 0);
    database.execute(
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET synchronous_commit = local', current_database());
             EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database());
         END $$",
    );
    let after = facts().await;
    assert_eq!((after.synchronous_commit.as_str(), after.is_read_only), ("local", true));
}

#[test]
fn a_role_that_may_only_read_is_found() {
    let database = TestDatabase::new(Backend::Postgres);
    let mut conn = database.url().connect().unwrap();
    for (role, suffices) in [("SET ROLE NONE", true), ("SET ROLE pg_read_all_data", false)] {
        conn.batch_execute(role).unwrap();
        let DatabaseFacts::Postgres(facts) = database_facts(&mut conn).unwrap() else { panic!("PostgreSQL") };
        assert_eq!(facts.may_write, suffices, "{role}");
    }
}

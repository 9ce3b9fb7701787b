//! Facts about a database that matter to whoever operates it. Nothing is written: every read is in a read-only
//! transaction, and a missing SQLite file is not created.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use url::Url;

use crate::clock::Clock;
use crate::connect::{AnyConnection, session_settings};
use crate::database_url::DatabaseUrl;
use crate::error::StoreError;
use crate::prepared::prepared;
use crate::store::follow;

/// How a database is set up and used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseFacts {
    /// A PostgreSQL server.
    Postgres(PostgresFacts),
    /// An SQLite file.
    Sqlite {
        /// Its absolute path.
        file: String,
        /// Its journal mode, such as `wal`.
        journal_mode: String,
    },
}

/// How a PostgreSQL server is set up and used.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct PostgresFacts {
    /// The major version, such as 15.
    #[diesel(sql_type = BigInt)]
    pub major_version: i64,
    /// The full version.
    #[diesel(sql_type = Text)]
    pub version: String,
    /// The database's encoding, such as `UTF8`.
    #[diesel(sql_type = Text)]
    pub encoding: String,
    /// The setting `fsync`.
    #[diesel(sql_type = Bool)]
    pub fsync: bool,
    /// The setting `full_page_writes`.
    #[diesel(sql_type = Bool)]
    pub full_page_writes: bool,
    /// The setting `synchronous_commit` of a session that doesn't change it, as Redial's do.
    #[diesel(sql_type = Text)]
    pub synchronous_commit: String,
    /// The setting `autovacuum`.
    #[diesel(sql_type = Bool)]
    pub autovacuum: bool,
    /// Whether it is a standby, which accepts no writes.
    #[diesel(sql_type = Bool)]
    pub is_standby: bool,
    /// The setting `default_transaction_read_only`.
    #[diesel(sql_type = Bool)]
    pub is_read_only: bool,
    /// Whether this role may read and write all of Redial's tables; true if there are none yet.
    #[diesel(sql_type = Bool)]
    pub may_write: bool,
    /// The setting `max_connections`.
    #[diesel(sql_type = BigInt)]
    pub max_connections: i64,
    /// How many of them are reserved for other roles than ordinary ones.
    #[diesel(sql_type = BigInt)]
    pub reserved_connections: i64,
    /// The limit of the role or the database, whichever is lower; `None` is unlimited.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub connection_limit: Option<i64>,
    /// Sessions in the server, other than this one.
    #[diesel(sql_type = BigInt)]
    pub sessions: i64,
    /// Those of Redial's processes on this database.
    #[diesel(sql_type = BigInt)]
    pub own_sessions: i64,
    /// Of these, how many hide from this role when their transaction began.
    #[diesel(sql_type = BigInt)]
    pub hidden_sessions: i64,
}

/// Reads the facts about a database.
pub fn database_facts(conn: &mut AnyConnection) -> Result<DatabaseFacts, StoreError> {
    let conn = match conn {
        AnyConnection::Postgres(conn) => conn,
        AnyConnection::Sqlite(conn) => {
            let file = prepared::<Text, _>("SELECT file FROM pragma_database_list WHERE name = 'main'");
            let (file, mode) = (file.get_result(conn)?, prepared::<Text, _>("PRAGMA journal_mode"));
            return Ok(DatabaseFacts::Sqlite { file, journal_mode: mode.get_result(conn)? });
        }
    };
    Ok(DatabaseFacts::Postgres(diesel::sql_query(POSTGRES_FACTS).get_result(conn)?))
}

const POSTGRES_FACTS: &str = "
    SELECT current_setting('server_version_num')::bigint / 10000 AS major_version,
        current_setting('server_version') AS version,
        current_setting('server_encoding') AS encoding,
        current_setting('fsync')::boolean AS fsync,
        current_setting('full_page_writes')::boolean AS full_page_writes,
        current_setting('autovacuum')::boolean AS autovacuum,
        -- What a session starts with: Redial's have changed the first one.
        (SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit') AS synchronous_commit,
        (SELECT reset_val::boolean FROM pg_settings WHERE name = 'default_transaction_read_only') AS is_read_only,
        pg_is_in_recovery() AS is_standby,
        (SELECT coalesce(bool_and(has_table_privilege(oid, privilege)), true)
            FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
            WHERE relkind = 'r' AND relname NOT IN ('__diesel_schema_migrations', 'schema_admits')
                AND (relnamespace, relowner) = (SELECT relnamespace, relowner FROM pg_class
                    WHERE oid = to_regclass('__diesel_schema_migrations'))) AS may_write,
        current_setting('max_connections')::bigint AS max_connections,
        -- The second setting exists since PostgreSQL 16.
        current_setting('superuser_reserved_connections')::bigint
            + coalesce(current_setting('reserved_connections', true), '0')::bigint AS reserved_connections,
        (SELECT least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1))::bigint FROM pg_roles, pg_database
            WHERE rolname = current_user AND NOT rolsuper AND datname = current_database()) AS connection_limit,
        count(*) AS sessions,
        count(*) FILTER (WHERE is_own) AS own_sessions,
        count(*) FILTER (WHERE is_own AND coalesce(state, 'disabled') = 'disabled') AS hidden_sessions
    FROM (SELECT state, application_name = 'redial' AND datname = current_database() AS is_own
        FROM pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_backend_pid()) AS others";

/// Returns by how many seconds the database's clock is ahead of this host's; negative if it is behind. On
/// SQLite they are the same clock.
pub fn clock_offset(conn: &mut AnyConnection) -> Result<f64, StoreError> {
    let clock = Clock::system();
    follow(conn, &clock)?;
    Ok(clock.ahead_of_host())
}

impl DatabaseUrl {
    /// Runs `work` in a read-only transaction on a connection of its own, whatever the schema. A timeout is an
    /// outage; `work` then continues, but nothing waits for it.
    pub async fn inspect<T, F>(&self, limit: Duration, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let url = self.clone();
        let inspect = move || {
            let opened = url.connect_unchanged();
            let mut conn = opened.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            conn.begin_read()?;
            if url.is_pooled() {
                conn.batch_execute(&session_settings("LOCAL"))?;
            }
            let result = work(&mut conn);
            conn.end(result)
        };
        match tokio::time::timeout(limit, tokio::task::spawn_blocking(inspect)).await {
            Ok(ended) => ended.map_err(|_| StoreError::Panicked)?,
            Err(_) => {
                Err(StoreError::Unavailable(format!("it does not answer within {} s", limit.as_secs())))
            }
        }
    }

    /// Connects without creating an SQLite file or changing its journal mode.
    fn connect_unchanged(&self) -> ConnectionResult<AnyConnection> {
        let DatabaseUrl::Sqlite(path) = self else { return self.connect() };
        let bad = |why: &dyn ToString| ConnectionError::BadConnection(why.to_string());
        let path = std::path::absolute(path).map_err(|error| bad(&error))?;
        let mut uri = Url::from_file_path(path).map_err(|()| bad(&"the path is not absolute"))?;
        // Not `ro`: SQLite would leave empty log files behind.
        uri.set_query(Some("mode=rw"));
        let mut conn = SqliteConnection::establish(uri.as_str())?;
        conn.batch_execute("PRAGMA query_only = ON; PRAGMA busy_timeout = 5000")
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(AnyConnection::Sqlite(conn))
    }
}

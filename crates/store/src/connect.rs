//! One connection type for both engines.

use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, CacheSize, SimpleConnection, TransactionManager};
use diesel::{Connection as _, PgConnection, SqliteConnection};

use crate::database_url::{DatabaseUrl, POOLED, for_libpq};

/// A connection to either engine. All code that uses a connection is written once, against this type. (It
/// can't be named `Connection`: the derive's code would take it for diesel's trait.)
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// PostgreSQL, for services.
    Postgres(PgConnection),
    /// SQLite, for the embedded mode.
    Sqlite(SqliteConnection),
}

/// Returns the statements that set up a session of a server, or each transaction if the server is behind a
/// pooler.
pub(crate) fn session_settings(scope: &str) -> String {
    format!(
        "SET {scope} client_min_messages = warning;
         -- A claim that is forgotten after a crash would be sent again under the same number.
         SELECT set_config('synchronous_commit', 'on', {is_local})
             WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply');
         -- Compiling a statement takes longer than any of ours runs, whatever the planner expects.
         SET {scope} jit = off;
         -- Every hot statement finds its rows by their keys or walks one index, whatever its values and however long the
         -- tables: it is planned once. A plan made while a table was small must do when it has grown.
         SET {scope} plan_cache_mode = force_generic_plan; SET {scope} enable_seqscan = off;
         -- Far longer than any statement of ours: one that nobody waits for any more gives its connection back.
         SET {scope} statement_timeout = '30s';
         -- A host that vanishes in mid-transaction must not hold its rows, nor one that waits for them.
         SET {scope} idle_in_transaction_session_timeout = '10s'; SET {scope} lock_timeout = '5s'",
        is_local = scope == "LOCAL"
    )
}

/// Adds advice to PgBouncer's refusal. PgBouncer does not localize its messages.
fn advised(error: diesel::ConnectionError) -> diesel::ConnectionError {
    match error {
        diesel::ConnectionError::BadConnection(why) if why.contains("unsupported startup parameter") => {
            let advice = format!("through PgBouncer, add {POOLED} to the database's url: {}", why.trim());
            diesel::ConnectionError::BadConnection(advice)
        }
        error => error,
    }
}

impl DatabaseUrl {
    /// Opens one connection with this program's settings.
    pub fn connect(&self) -> diesel::ConnectionResult<AnyConnection> {
        let set_up = diesel::ConnectionError::CouldntSetupConfiguration;
        Ok(match self {
            DatabaseUrl::Postgres(url) => {
                let mut conn = PgConnection::establish(&for_libpq(url)).map_err(advised)?;
                if self.is_pooled() {
                    // A prepared statement belongs to a session, and the next transaction may run in another
                    // one.
                    conn.set_prepared_statement_cache_size(CacheSize::Disabled);
                    conn.batch_execute("SET application_name = 'redial'").map_err(set_up)?;
                } else {
                    let settings =
                        format!("SET application_name = 'redial'; {}", session_settings("SESSION"));
                    conn.batch_execute(&settings).map_err(set_up)?;
                }
                AnyConnection::Postgres(conn)
            }
            DatabaseUrl::Sqlite(path) => {
                let mut conn = SqliteConnection::establish(path)?;
                conn.batch_execute(
                    // Overwrites changed data, so that erasing leaves nothing in freed pages or temporary
                    // files.
                    "PRAGMA busy_timeout = 5000; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
                     PRAGMA secure_delete = ON; PRAGMA temp_store = MEMORY",
                )
                .and_then(|()| enable_wal(&mut conn))
                .map_err(set_up)?;
                AnyConnection::Sqlite(conn)
            }
        })
    }
}

/// Switches to write-ahead logging, which is a property of the file. Only the first connection to a new file
/// changes anything. SQLite's busy timeout does not cover the change, so connections opened at the same time
/// retry it here.
fn enable_wal(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match conn.batch_execute("PRAGMA journal_mode = WAL") {
            Err(_) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(5)),
            other => return other,
        }
    }
}

impl AnyConnection {
    /// Begins a transaction that may write. SQLite takes the write lock at once, so that no later statement
    /// of the transaction fails for lack of it.
    pub(crate) fn begin_write(&mut self) -> diesel::QueryResult<()> {
        match self {
            // Explicit, because the server's default may differ: after a conflict a statement must see the
            // row that won, and a standby must refuse at once.
            AnyConnection::Postgres(conn) => AnsiTransactionManager::begin_transaction_sql(
                conn,
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            ),
            AnyConnection::Sqlite(conn) => {
                AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN IMMEDIATE")
            }
        }
    }

    /// Begins a read-only transaction that reads from one snapshot.
    pub(crate) fn begin_read(&mut self) -> diesel::QueryResult<()> {
        match self {
            AnyConnection::Postgres(conn) => AnsiTransactionManager::begin_transaction_sql(
                conn,
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            ),
            AnyConnection::Sqlite(conn) => AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN"),
        }
    }

    /// Ends the current transaction: commits it, or rolls it back if `result` is an error.
    pub(crate) fn end<T, E: From<diesel::result::Error>>(&mut self, result: Result<T, E>) -> Result<T, E> {
        match result {
            Ok(value) => {
                Self::commit_transaction(self)?;
                Ok(value)
            }
            Err(error) => {
                // If this fails too, the connection counts as broken and the pool drops it.
                let _ = Self::rollback_transaction(self);
                Err(error)
            }
        }
    }

    /// Whether diesel has lost track of its transaction.
    pub(crate) fn is_broken(&mut self) -> bool {
        Self::is_broken_transaction_manager(self)
    }
}

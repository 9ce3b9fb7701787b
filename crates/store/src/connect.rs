//! One connection type for both engines.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, CacheSize, SimpleConnection, TransactionManager};
use diesel::{Connection as _, PgConnection, SqliteConnection};
use thiserror::Error;

/// A connection to either engine. All code that uses a connection is written once, against this type. (It
/// can't be named `Connection`: the derive's code would take it for diesel's trait.)
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// PostgreSQL, for services.
    Postgres(PgConnection),
    /// SQLite, for the embedded mode.
    Sqlite(SqliteConnection),
}

/// The URL of a database. The scheme selects the engine: `postgres:`, `postgresql:` or `sqlite:`. Formatted
/// without its password.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A libpq connection URI.
    Postgres(String),
    /// The path of a database file.
    Sqlite(String),
}

/// Why a text is not a [`DatabaseUrl`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatabaseUrlError {
    /// An unknown scheme, or no scheme.
    #[error("expected a URL that begins with postgres:// or sqlite:")]
    Scheme,
    /// `sqlite:` without a path.
    #[error("a sqlite: URL needs the path of a file, such as sqlite:redial.db")]
    Path,
    /// Characters that make the URL's parts ambiguous and would put a password into messages.
    #[error("a password or name in the URL has a character that must be percent-encoded, such as %, / or @")]
    Unencoded,
    /// Requests TLS from a build without TLS, which would otherwise fall back to clear text or fail with an
    /// obscure error.
    #[error(
        "sslmode={0} asks for TLS, and this program was built without it: build with --features postgres-tls"
    )]
    Tls(String),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(DatabaseUrlError::Path)
            } else {
                Ok(DatabaseUrl::Sqlite(path.to_owned()))
            };
        }
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err(DatabaseUrlError::Scheme);
        }
        let before_query = text.split('?').next().unwrap_or(text);
        let path = before_query.splitn(4, '/').nth(3).unwrap_or("");
        let is_encoded = |(place, _)| {
            text.get(place + 1..place + 3)
                .is_some_and(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
        };
        if path.contains('@') || !text.match_indices('%').all(is_encoded) {
            return Err(DatabaseUrlError::Unencoded);
        }
        if cfg!(not(feature = "postgres-tls")) {
            let mode = text.split(['?', '&']).skip(1).find_map(|pair| pair.strip_prefix("sslmode="));
            if let Some(mode @ ("require" | "verify-ca" | "verify-full")) = mode {
                return Err(DatabaseUrlError::Tls(mode.to_owned()));
            }
        }
        Ok(DatabaseUrl::Postgres(text.to_owned()))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Sqlite(path) => write!(f, "sqlite:{path}"),
            // Everything between the scheme and the last @ of the authority may contain a password.
            DatabaseUrl::Postgres(url) => match url.split_once("://").map(|(_, rest)| rest) {
                Some(rest) => {
                    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
                    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                    let path = rest[authority.len()..].split('?').next().unwrap_or("");
                    write!(f, "postgres://{host}{path}")
                }
                None => f.write_str("postgres:"),
            },
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// URL parameter which states that a pooler such as PgBouncer is in front of the server and may run each
/// transaction in a different session.
const POOLED: &str = "pgbouncer=true";

/// Returns the URL in the form that libpq accepts.
fn for_libpq(url: &str) -> String {
    let is_pooled = url.split(['?', '&']).any(|part| part == POOLED);
    let own = url.split_once('?').map_or(url.to_owned(), |(place, parameters)| {
        let left: Vec<&str> = parameters.split('&').filter(|part| *part != POOLED).collect();
        if left.is_empty() { place.to_owned() } else { format!("{place}?{}", left.join("&")) }
    });
    let mut url = with_time_limits(&own);
    // PgBouncer refuses a setting that it would have to apply to every session. So a pooler that the URL does
    // not declare is detected at connect.
    if !is_pooled && !url.contains("options=") {
        url.push_str("&options=-c%20redial.direct%3Don");
    }
    url
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

/// Adds time limits that the URL does not set, so that a server that vanished is detected within seconds
/// instead of hours.
fn with_time_limits(url: &str) -> String {
    let limits = [
        ("connect_timeout", 5),
        ("keepalives_idle", 10),
        ("keepalives_interval", 5),
        ("keepalives_count", 3),
        ("tcp_user_timeout", 15_000),
    ];
    limits.iter().filter(|(name, _)| !url.contains(name)).fold(url.to_owned(), |url, (name, value)| {
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}{name}={value}")
    })
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
    /// Whether a pooler may run each transaction in a different session of the server.
    pub fn is_pooled(&self) -> bool {
        match self {
            DatabaseUrl::Postgres(url) => url.split(['?', '&']).any(|part| part == POOLED),
            DatabaseUrl::Sqlite(_) => false,
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_chooses_the_engine_and_others_are_refused() {
        assert_eq!("sqlite:a.db".parse(), Ok(DatabaseUrl::Sqlite("a.db".into())));
        assert_eq!("sqlite:///tmp/a.db".parse(), Ok(DatabaseUrl::Sqlite("/tmp/a.db".into())));
        assert_eq!("sqlite:".parse::<DatabaseUrl>(), Err(DatabaseUrlError::Path));
        assert_eq!("mysql://x".parse::<DatabaseUrl>(), Err(DatabaseUrlError::Scheme));
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl =
            "postgres://me:p%40ss%2Fw@db.example:5432/redial?password=hunter2".parse().unwrap();
        assert_eq!(format!("{url:?}"), "postgres://db.example:5432/redial");
        for url in
            ["postgres://me:p@ss/w@db/redial", "postgres://me:abc/def@db/redial", "postgres://u:100%safe@db"]
        {
            assert_eq!(url.parse::<DatabaseUrl>(), Err(DatabaseUrlError::Unencoded), "{url}");
        }
        let url: DatabaseUrl = "postgres://me:secret@db.example:5432/redial".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://db.example:5432/redial");
    }

    #[test]
    #[cfg(not(feature = "postgres-tls"))]
    fn a_build_without_tls_refuses_a_url_that_asks_for_it() {
        let url = "postgres://db/redial?connect_timeout=3&sslmode=verify-full";
        assert_eq!(url.parse::<DatabaseUrl>(), Err(DatabaseUrlError::Tls("verify-full".into())));
    }
}

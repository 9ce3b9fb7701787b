//! Either engine behind one connection type.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, CacheSize, SimpleConnection, TransactionManager};
use diesel::{Connection as _, PgConnection, SqliteConnection};
use thiserror::Error;

/// Either engine. Everything below the pool is written once, against this type. (It cannot be called
/// `Connection`: the derive's code would take it for diesel's trait.)
#[derive(diesel::MultiConnection)]
pub enum AnyConnection {
    /// PostgreSQL, for services.
    Postgres(PgConnection),
    /// SQLite, for the embedded mode.
    Sqlite(SqliteConnection),
}

/// Where the database is. The scheme chooses the engine: `postgres:`, `postgresql:` or `sqlite:`. Shown without
/// its password.
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
    /// Another scheme, or none.
    #[error("expected a URL that begins with postgres:// or sqlite:")]
    Scheme,
    /// `sqlite:` with nothing behind it.
    #[error("a sqlite: URL needs the path of a file, such as sqlite:redial.db")]
    Path,
    /// Characters that would make the parts of the URL run into each other, and put a password into messages.
    #[error("a password or name in the URL has a character that must be percent-encoded, such as %, / or @")]
    Unencoded,
    /// Asks for TLS of a build that has none, which would otherwise fall back to clear text or fail obscurely.
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
            // Everything between the scheme and the last @ of the authority may hold a password.
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

/// What says in a URL that PgBouncer or the like stands before the server, and may give each transaction another session.
const POOLED: &str = "pgbouncer=true";

/// The URL as libpq takes it.
fn for_libpq(url: &str) -> String {
    let is_pooled = url.split(['?', '&']).any(|part| part == POOLED);
    let own = url.split_once('?').map_or(url.to_owned(), |(place, parameters)| {
        let left: Vec<&str> = parameters.split('&').filter(|part| *part != POOLED).collect();
        if left.is_empty() { place.to_owned() } else { format!("{place}?{}", left.join("&")) }
    });
    let mut url = with_time_limits(&own);
    // PgBouncer takes no setting of a session that it would have to give to every session: so it is noticed at once.
    if !is_pooled && !url.contains("options=") {
        url.push_str("&options=-c%20redial.direct%3Don");
    }
    url
}

/// What the sessions of a server are set to, each for itself or, behind a pooler, for each transaction.
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

/// A server that is gone without a word is noticed within seconds instead of hours, unless the URL says otherwise.
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

/// PgBouncer's own words, in which it speaks to everybody.
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
    /// Whether a pooler may give each transaction another session of the server.
    pub fn is_pooled(&self) -> bool {
        match self {
            DatabaseUrl::Postgres(url) => url.split(['?', '&']).any(|part| part == POOLED),
            DatabaseUrl::Sqlite(_) => false,
        }
    }

    /// Opens one connection, set up as every connection of this program is.
    pub fn connect(&self) -> diesel::ConnectionResult<AnyConnection> {
        let set_up = diesel::ConnectionError::CouldntSetupConfiguration;
        Ok(match self {
            DatabaseUrl::Postgres(url) => {
                let mut conn = PgConnection::establish(&for_libpq(url)).map_err(advised)?;
                if self.is_pooled() {
                    // A statement is prepared in the session, which may be another one the next time.
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
                    // What is rewritten is overwritten, so that erasing leaves nothing in freed pages, nor in temporary files.
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

/// Switches to write-ahead logging, which lasts. Only a new file's first connection really does; SQLite's own waiting
/// does not cover it, so others that open the file at the same moment try again.
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
    /// Begins a transaction that may write. SQLite takes the write lock at once, so that no later statement of
    /// it can be refused for want of the lock.
    pub(crate) fn begin_write(&mut self) -> diesel::QueryResult<()> {
        match self {
            // Said, as the server's default may be another: after a conflict a statement must see what won, and a
            // standby must refuse at once.
            AnyConnection::Postgres(conn) => AnsiTransactionManager::begin_transaction_sql(
                conn,
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            ),
            AnyConnection::Sqlite(conn) => {
                AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN IMMEDIATE")
            }
        }
    }

    /// Begins a transaction that only reads, all from one moment.
    pub(crate) fn begin_read(&mut self) -> diesel::QueryResult<()> {
        match self {
            AnyConnection::Postgres(conn) => AnsiTransactionManager::begin_transaction_sql(
                conn,
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            ),
            AnyConnection::Sqlite(conn) => AnsiTransactionManager::begin_transaction_sql(conn, "BEGIN"),
        }
    }

    /// Ends the transaction begun before: commits what `work` did, or rolls it back when it failed.
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

//! A pool of connections to one server.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use contracts::Timestamp;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::BigInt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::connect::{AnyConnection, session_settings};
use crate::connections::POOL_WAIT;
use crate::database_url::DatabaseUrl;
use crate::error::StoreError;
use crate::prepared::prepared;

/// A pool with a queue: callers wait here without holding a thread.
pub(crate) struct Pool {
    connections: r2d2::Pool<Manager>,
    pub(crate) turns: Arc<Semaphore>,
    /// Number of connections in use, by server.
    in_use: Mutex<BTreeMap<Server, usize>>,
    /// Cancelled when another server has taken over.
    pub(crate) left: CancellationToken,
}

/// A run of a PostgreSQL server, identified by when it began. `None`: unknown, as with SQLite or a pooler.
type Server = Option<Timestamp>;

impl Pool {
    /// Returns a pool whose first connection is `first`, if given.
    pub(crate) fn open(url: &DatabaseUrl, size: u32, first: Option<Pooled>) -> Pool {
        let connections = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(1))
            .test_on_check_out(false) // BEGIN is the test, see `begun`
            .connection_timeout(POOL_WAIT * 2)
            .error_handler(Box::new(LogOutage))
            .build_unchecked(Manager { url: url.clone(), first: Mutex::new(first) });
        Pool {
            connections,
            turns: Arc::new(Semaphore::new(size as usize)),
            in_use: Mutex::default(),
            left: CancellationToken::new(),
        }
    }

    pub(crate) fn get(&self) -> Result<InUse<'_>, StoreError> {
        let conn = self.connections.get().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        *self.in_use.lock().entry(conn.server).or_default() += 1;
        Ok(InUse { pool: self, conn })
    }

    /// Returns a connection on which a transaction has begun. Discards dead connections, as after a restart
    /// of the server, and tries the next one; nothing was done on them yet. If the server itself refuses, as
    /// a standby does, no further connections are tried.
    pub(crate) fn begun(
        &self,
        begin: fn(&mut AnyConnection) -> QueryResult<()>,
    ) -> Result<InUse<'_>, StoreError> {
        let mut tries = self.connections.max_size() + 1;
        loop {
            let mut conn = self.get()?;
            let Err(error) = conn.begin(begin) else { return Ok(conn) };
            conn.lost = true;
            tries -= 1;
            if tries == 0 || !is_dead(&error) {
                return Err(StoreError::Unavailable(error.to_string()));
            }
        }
    }

    /// Whether a connection in use is to another server than `found`. `None` stands for any connection.
    pub(crate) fn is_at_another_server(&self, found: Option<&Pooled>) -> bool {
        let is_other = |used: &Server| used.is_some() && found.is_none_or(|found| found.server != *used);
        self.in_use.lock().keys().any(is_other)
    }

    /// Returns the number of used and of idle connections, and their maximum.
    pub(crate) fn counts(&self) -> [u32; 3] {
        let state = self.connections.state();
        let used = state.connections.saturating_sub(state.idle_connections);
        [used, state.idle_connections, self.connections.max_size()]
    }
}

/// A connection in use.
pub(crate) struct InUse<'a> {
    pool: &'a Pool,
    conn: r2d2::PooledConnection<Manager>,
}

impl Deref for InUse<'_> {
    type Target = Pooled;

    fn deref(&self) -> &Pooled {
        &self.conn
    }
}

impl DerefMut for InUse<'_> {
    fn deref_mut(&mut self) -> &mut Pooled {
        &mut self.conn
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut in_use = self.pool.in_use.lock();
        let count = in_use.entry(self.conn.server).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            in_use.remove(&self.conn.server);
        }
    }
}

/// Whether the error means a dead connection, not a refusal by the server.
fn is_dead(error: &Error) -> bool {
    use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
    match error {
        Error::DatabaseError(kind, _) => matches!(kind, ClosedConnection | UnableToSendCommand),
        error => *error == Error::BrokenTransactionManager,
    }
}

struct Manager {
    url: DatabaseUrl,
    /// The connection to begin with.
    first: Mutex<Option<Pooled>>,
}

/// A connection with what the pool knows about it.
pub(crate) struct Pooled {
    pub(crate) inner: AnyConnection,
    server: Server,
    /// Whether an operation failed outside of a transaction. The connection must not be reused.
    pub(crate) lost: bool,
    /// Whether each transaction may run in a different session of the server.
    pub(crate) is_pooled: bool,
}

impl Pooled {
    pub(crate) fn connect(url: &DatabaseUrl) -> Result<Pooled, diesel::ConnectionError> {
        let (mut inner, is_pooled) = (url.connect()?, url.is_pooled());
        let server = match &mut inner {
            AnyConnection::Postgres(conn) if !is_pooled => {
                let began = prepared::<BigInt, _>(
                    "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint",
                );
                let began = began.get_result(conn);
                Some(Timestamp::from_micros(
                    began.map_err(diesel::ConnectionError::CouldntSetupConfiguration)?,
                ))
            }
            _ => None,
        };
        Ok(Pooled { inner, server, lost: false, is_pooled })
    }

    /// Whether the server accepts write transactions, which a standby does not.
    pub(crate) fn accepts_writes(&mut self) -> bool {
        self.inner.begin_write().and_then(|()| self.inner.end(Ok::<_, Error>(()))).is_ok()
    }

    pub(crate) fn begin(&mut self, begin: fn(&mut AnyConnection) -> QueryResult<()>) -> QueryResult<()> {
        begin(&mut self.inner)?;
        if self.is_pooled { self.inner.batch_execute(&session_settings("LOCAL")) } else { Ok(()) }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Pooled;
    type Error = diesel::ConnectionError;

    fn connect(&self) -> Result<Pooled, Self::Error> {
        let first = self.first.lock().take();
        first.map_or_else(|| Pooled::connect(&self.url), Ok)
    }

    fn is_valid(&self, _: &mut Pooled) -> Result<(), Self::Error> {
        Ok(())
    }

    fn has_broken(&self, conn: &mut Pooled) -> bool {
        conn.lost || std::thread::panicking() || conn.inner.is_broken()
    }
}

#[derive(Debug)]
struct LogOutage;

impl r2d2::HandleError<diesel::ConnectionError> for LogOutage {
    fn handle_error(&self, error: diesel::ConnectionError) {
        tracing::warn!(%error, "no connection to the database");
    }
}

//! A pool of connections, and transactions on them.

use std::sync::Arc;
use std::time::Duration;

use contracts::Timestamp;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::connect::{AnyConnection, DatabaseUrl, session_settings};
use crate::error::StoreError;

/// How long a use case without its own timeout waits for a free connection.
pub(crate) const POOL_WAIT: Duration = Duration::from_secs(1);

/// A pool with a queue: callers wait here without holding a thread.
#[derive(Clone)]
pub(crate) struct Connections {
    pool: r2d2::Pool<Manager>,
    turns: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn open(url: &DatabaseUrl, size: u32) -> Result<Connections, StoreError> {
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(1))
            .test_on_check_out(false) // BEGIN is the test, see `transaction`
            .connection_timeout(POOL_WAIT * 2)
            .error_handler(Box::new(LogOutage))
            .build_unchecked(Manager(url.clone()));
        Ok(Connections { pool, turns: Arc::new(Semaphore::new(size as usize)) })
    }

    pub(crate) async fn transaction<T, E, F>(
        &self,
        pool_wait: Duration,
        clock: Clock,
        begin: fn(&mut AnyConnection) -> QueryResult<()>,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut AnyConnection, Timestamp) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + From<diesel::result::Error> + Send + 'static,
    {
        let turn = self.turn(pool_wait).await?;
        let pool = self.pool.clone();
        let work = move || {
            let mut conn = begun(&pool, begin)?;
            let result = work(&mut conn.inner, clock.now());
            let result = conn.inner.end(result);
            drop(turn);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Panicked)?
    }

    /// Runs `work` on a connection without a transaction, unless a pooler needs one.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let turn = self.turn(POOL_WAIT).await?;
        let pool = self.pool.clone();
        let work = move || {
            let mut conn = pool.get().map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let result = if conn.is_pooled {
                let begun = conn.begin(AnyConnection::begin_write).map_err(StoreError::from);
                let result = begun.and_then(|()| work(&mut conn.inner));
                conn.inner.end(result)
            } else {
                work(&mut conn.inner)
            };
            conn.lost |= result.is_err();
            drop(turn);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Panicked)?
    }

    /// Returns the number of used and of idle connections, and their maximum.
    pub(crate) fn counts(&self) -> [u32; 3] {
        let state = self.pool.state();
        let used = state.connections.saturating_sub(state.idle_connections);
        [used, state.idle_connections, self.pool.max_size()]
    }

    async fn turn(&self, pool_wait: Duration) -> Result<OwnedSemaphorePermit, StoreError> {
        let turn = timeout(pool_wait, self.turns.clone().acquire_owned()).await;
        turn.map_err(|_| StoreError::Busy)?.map_err(|_| StoreError::Busy)
    }
}

/// Returns a connection on which a transaction has begun. Discards dead connections, as after a restart of
/// the server, and tries the next one; nothing was done on them yet. If the server itself refuses, as a
/// standby does, no further connections are tried.
fn begun(
    pool: &r2d2::Pool<Manager>,
    begin: fn(&mut AnyConnection) -> QueryResult<()>,
) -> Result<r2d2::PooledConnection<Manager>, StoreError> {
    let mut tries = pool.max_size() + 1;
    loop {
        let mut conn = pool.get().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let Err(error) = conn.begin(begin) else { return Ok(conn) };
        conn.lost = true;
        tries -= 1;
        if tries == 0 || !is_dead(&error) {
            return Err(StoreError::Unavailable(error.to_string()));
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

struct Manager(DatabaseUrl);

struct Pooled {
    inner: AnyConnection,
    /// Whether an operation failed outside of a transaction. The connection must not be reused.
    lost: bool,
    /// Whether each transaction may run in a different session of the server.
    is_pooled: bool,
}

impl Pooled {
    fn begin(&mut self, begin: fn(&mut AnyConnection) -> QueryResult<()>) -> QueryResult<()> {
        begin(&mut self.inner)?;
        if self.is_pooled { self.inner.batch_execute(&session_settings("LOCAL")) } else { Ok(()) }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Pooled;
    type Error = diesel::ConnectionError;

    fn connect(&self) -> Result<Pooled, Self::Error> {
        Ok(Pooled { inner: self.0.connect()?, lost: false, is_pooled: self.0.is_pooled() })
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

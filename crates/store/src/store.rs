//! The connection pool, and the transaction around each use case.

use std::sync::Arc;
use std::time::{Duration, Instant};

use contracts::Timestamp;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{BigInt, Integer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::connect::{AnyConnection, DatabaseUrl, session_settings};
use crate::error::StoreError;
use crate::migrate::schema_state;
use crate::prepared::prepared;

/// A database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    writers: Connections,
    readers: Connections,
    clock: Clock,
    alive_at: watch::Sender<Instant>,
}

/// How long a use case without its own timeout waits for a free connection.
const POOL_WAIT: Duration = Duration::from_secs(1);
/// Timeout of [`Store::ping`].
const PING_TIMEOUT: Duration = Duration::from_secs(5);

impl Store {
    /// Opens a database whose schema is up to date, with at most `connections` connections.
    pub async fn open(url: &DatabaseUrl, connections: u32) -> Result<Store, StoreError> {
        Self::open_with_clock(url, connections, Clock::system()).await
    }

    /// Like [`Store::open`], with the caller's clock.
    pub async fn open_with_clock(
        url: &DatabaseUrl,
        connections: u32,
        clock: Clock,
    ) -> Result<Store, StoreError> {
        let readers = Connections::open(url, connections)?;
        let writers = match url {
            DatabaseUrl::Postgres(_) => readers.clone(),
            // SQLite's wait for the write lock is unfair: with one writer, callers queue here instead.
            DatabaseUrl::Sqlite(_) => Connections::open(url, 1)?,
        };
        let store = Store { writers, readers, clock, alive_at: watch::Sender::new(Instant::now()) };
        store.require_schema().await?;
        store.align_clock().await?;
        Ok(store)
    }

    /// The clock that follows this database.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Runs `work` in one transaction that may write. It completes even if the caller's future is dropped, so
    /// a client that disconnects can't leave a transaction open.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut AnyConnection, Timestamp) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + From<diesel::result::Error> + Send + 'static,
    {
        self.write_when_free(POOL_WAIT, work).await
    }

    async fn write_when_free<T, E, F>(&self, pool_wait: Duration, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut AnyConnection, Timestamp) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + From<diesel::result::Error> + Send + 'static,
    {
        let (begin, clock) = (AnyConnection::begin_write, self.clock.clone());
        let written = self.writers.transaction(pool_wait, clock, begin, work).await;
        if written.is_ok() {
            self.alive_at.send_replace(Instant::now());
        }
        written
    }

    /// Like [`Store::write`], with the timeout `patience`, which includes the wait for a free connection. A
    /// timeout is an outage ([`StoreError::is_outage`]). The transaction then continues and may still commit;
    /// a silent connection must not delay later callers.
    pub async fn write_within<T, E, F>(&self, patience: Duration, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut AnyConnection, Timestamp) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + From<diesel::result::Error> + Send + 'static,
    {
        let silent = |_| StoreError::Unavailable("the database does not answer".into());
        timeout(patience, self.write_when_free(patience, work)).await.map_err(silent)?
    }

    /// Runs `work` in one read-only transaction on one snapshot.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut AnyConnection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + From<diesel::result::Error> + Send + 'static,
    {
        let (begin, clock) = (AnyConnection::begin_read, self.clock.clone());
        self.readers.transaction(POOL_WAIT, clock, begin, |conn, _| work(conn)).await
    }

    /// Returns the time up to which lists in ascending order are complete: no row that is still to be
    /// committed is older. A transaction takes its time when it begins, and transactions don't end in the
    /// order in which they begin. `None` if they do, as on SQLite.
    ///
    /// Call this before reading the list. Assumes that the clocks of processes differ by less than a second.
    /// A session whose transaction is hidden from this role counts as old as a transaction can become.
    pub async fn complete_until(&self) -> Result<Option<Timestamp>, StoreError> {
        const CLOCKS_DIFFER: Duration = Duration::from_secs(1);
        let oldest = |conn: &mut AnyConnection| {
            let AnyConnection::Postgres(conn) = conn else { return Ok(None) };
            let statement = prepared::<BigInt, _>(
                "SELECT (extract(epoch FROM least(clock_timestamp(), min(
                     CASE WHEN coalesce(state, 'disabled') = 'disabled' THEN clock_timestamp() - interval '1 minute'
                     ELSE xact_start END))) * 1000000)::bigint
                 FROM pg_stat_activity
                 WHERE application_name = 'redial' AND datname = current_database() AND pid <> pg_backend_pid()",
            );
            Ok(Some(Timestamp::from_micros(statement.get_result(conn)?) - CLOCKS_DIFFER))
        };
        self.readers.run(oldest).await
    }

    /// Checks within five seconds that the database accepts write transactions.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.write_within(PING_TIMEOUT, |conn, _| {
            Ok(diesel::select(1.into_sql::<Integer>()).execute(conn).map(drop)?)
        })
        .await
    }

    /// Returns when a write transaction last succeeded.
    pub fn alive_at(&self) -> Instant {
        *self.alive_at.borrow()
    }

    /// Returns the number of used and of idle connections that write, and their maximum.
    pub fn connections(&self) -> [u32; 3] {
        let state = self.writers.pool.state();
        [
            state.connections.saturating_sub(state.idle_connections),
            state.idle_connections,
            self.writers.pool.max_size(),
        ]
    }

    /// Moves SQLite's write-ahead log into the file and empties it, so that the log contains no erased data
    /// either. Returns an outage while another reader uses the log's old content. PostgreSQL manages its own
    /// log.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let checkpoint = |conn: &mut AnyConnection| {
            let AnyConnection::Sqlite(conn) = conn else { return Ok(()) };
            let statement = prepared::<(Integer, Integer, Integer), _>("PRAGMA wal_checkpoint(TRUNCATE)");
            let (is_busy, ..): (i32, i32, i32) = statement.get_result(conn)?;
            match is_busy {
                0 => Ok(()),
                _ => Err(StoreError::Unavailable("another program reads it".into())),
            }
        };
        self.writers.run(checkpoint).await
    }

    /// Keeps the clock aligned with the database's until `shutdown`. Returns an error once this program may
    /// no longer use the schema.
    pub async fn keep_aligned(&self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut ticks = tokio::time::interval(Duration::from_secs(10));
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            match self.require_schema().await {
                Err(error @ StoreError::Schema(_)) => return Err(error),
                Err(error) => tracing::debug!(%error, "the schema can't be checked"),
                Ok(()) => {}
            }
            if let Err(error) = self.align_clock().await {
                tracing::debug!(%error, "clock not aligned");
            }
        }
        Ok(())
    }

    async fn require_schema(&self) -> Result<(), StoreError> {
        self.readers.run(schema_state).await?.require()
    }

    async fn align_clock(&self) -> Result<(), StoreError> {
        let clock = self.clock.clone();
        self.readers
            .run(move |conn| {
                let AnyConnection::Postgres(conn) = conn else {
                    // SQLite's clock is this host's.
                    clock.align_with_host();
                    return Ok(());
                };
                let asked = clock.monotonic();
                let micros: i64 = diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(
                    "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
                ))
                .get_result(conn)?;
                if !clock.align(Timestamp::from_micros(micros), asked, clock.monotonic()) {
                    tracing::debug!("a sample of the database's clock was not used");
                }
                Ok(())
            })
            .await
    }
}

/// A pool with a queue: callers wait here without holding a thread.
#[derive(Clone)]
struct Connections {
    pool: r2d2::Pool<Manager>,
    turns: Arc<Semaphore>,
}

impl Connections {
    fn open(url: &DatabaseUrl, size: u32) -> Result<Connections, StoreError> {
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(1))
            .test_on_check_out(false) // BEGIN is the test, see `transaction`
            .connection_timeout(POOL_WAIT * 2)
            .error_handler(Box::new(LogOutage))
            .build_unchecked(Manager(url.clone()));
        Ok(Connections { pool, turns: Arc::new(Semaphore::new(size as usize)) })
    }

    async fn transaction<T, E, F>(
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
    async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
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

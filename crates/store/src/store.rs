//! The database of a process: the transaction around each use case, and the clock that follows the database.

use std::time::{Duration, Instant};

use contracts::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::connect::AnyConnection;
use crate::connections::{Connections, POOL_WAIT};
use crate::database_url::DatabaseUrl;
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
        self.writers.counts()
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
        self.readers.run(move |conn| follow(conn, &clock)).await
    }
}

/// Aligns `clock` with the database's.
pub(crate) fn follow(conn: &mut AnyConnection, clock: &Clock) -> Result<(), StoreError> {
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
}

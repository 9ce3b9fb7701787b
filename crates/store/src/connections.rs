//! The connections of a process: transactions on them, and the change to another server.

use std::sync::{Arc, Weak};
use std::time::Duration;

use contracts::Timestamp;
use diesel::QueryResult;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::clock::Clock;
use crate::connect::AnyConnection;
use crate::database_url::DatabaseUrl;
use crate::error::StoreError;
use crate::pool::{Pool, Pooled};

/// How long a use case without its own timeout waits for a free connection.
pub(crate) const POOL_WAIT: Duration = Duration::from_secs(1);
/// How long a transaction may be under way before another server is looked for. Few take that long, and
/// looking costs a connection.
const SILENCE: Duration = Duration::from_secs(1);
/// Minimum time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum number of former servers that threads may still wait for. Each may hold all threads of a pool.
const MOST_FORMER: usize = 4;

/// The connections of a process: a pool, and a new one once another server has taken over from a silent
/// one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Inner>);

struct Inner {
    url: DatabaseUrl,
    size: u32,
    pools: Mutex<Pools>,
    looks: Arc<Semaphore>,
}

struct Pools {
    current: Arc<Pool>,
    former: Vec<Weak<Pool>>,
}

impl Connections {
    pub(crate) fn open(url: &DatabaseUrl, size: u32) -> Result<Connections, StoreError> {
        let pools = Pools { current: Arc::new(Pool::open(url, size, None)), former: Vec::new() };
        let inner =
            Inner { url: url.clone(), size, pools: Mutex::new(pools), looks: Arc::new(Semaphore::new(1)) };
        Ok(Connections(Arc::new(inner)))
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
        let (pool, turn) = self.turn(pool_wait).await?;
        let work = move |pool: &Pool| {
            let mut conn = pool.begun(begin)?;
            let result = work(&mut conn.inner, clock.now());
            let result = conn.inner.end(result);
            drop(turn);
            result
        };
        self.outcome(pool, work).await
    }

    /// Runs `work` on a connection without a transaction, unless a pooler needs one.
    pub(crate) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        F: FnOnce(&mut AnyConnection) -> Result<T, StoreError> + Send + 'static,
        T: Send + 'static,
    {
        let (pool, turn) = self.turn(POOL_WAIT).await?;
        let work = move |pool: &Pool| {
            let mut conn = pool.get()?;
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
        self.outcome(pool, work).await
    }

    /// Returns the number of used and of idle connections, and their maximum.
    pub(crate) fn counts(&self) -> [u32; 3] {
        self.pool().counts()
    }

    fn pool(&self) -> Arc<Pool> {
        self.0.pools.lock().current.clone()
    }

    async fn turn(&self, pool_wait: Duration) -> Result<(Arc<Pool>, OwnedSemaphorePermit), StoreError> {
        let pool = self.pool();
        match timeout(pool_wait, pool.turns.clone().acquire_owned()).await {
            Ok(Ok(turn)) => Ok((pool, turn)),
            // The server has been left.
            Ok(Err(_)) => Err(StoreError::Busy),
            // Perhaps all connections wait for a silent server.
            Err(_) => {
                self.look_for_another_server(pool);
                Err(StoreError::Busy)
            }
        }
    }

    /// Runs `work` on a blocking thread and awaits its result. If another server takes over while the
    /// thread waits for a silent one, the thread is left alone and the result is an outage.
    async fn outcome<T, E>(
        &self,
        pool: Arc<Pool>,
        work: impl FnOnce(&Pool) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let running = pool.clone();
        let mut thread: JoinHandle<Result<T, E>> = spawn_blocking(move || work(&running));
        loop {
            tokio::select! {
                biased;
                ended = &mut thread => return ended.map_err(|_| StoreError::Panicked)?,
                () = pool.left.cancelled() => {
                    let why = "it was silent, and another server has taken over".into();
                    return Err(StoreError::Unavailable(why).into());
                }
                () = sleep(SILENCE) => self.look_for_another_server(pool.clone()),
            }
        }
    }

    /// Learns in the background which server the URL leads to now. The kernel reports a server that has died
    /// or whose host has vanished, but not one that hangs, and a host's end only after many seconds. If
    /// connections of `pool` are in use at another server than the one that accepts writes now, new ones
    /// replace them all.
    fn look_for_another_server(&self, pool: Arc<Pool>) {
        if !pool.is_at_another_server(None) {
            return;
        }
        let Ok(look) = self.0.looks.clone().try_acquire_owned() else { return };
        let connections = self.clone();
        tokio::spawn(async move {
            let looked = spawn_blocking(move || match Pooled::connect(&connections.0.url) {
                Ok(mut found) => {
                    if pool.is_at_another_server(Some(&found)) && found.accepts_writes() {
                        connections.leave(&pool, found);
                    }
                }
                Err(error) => tracing::debug!(%error, "no other server"),
            });
            if let Err(error) = looked.await {
                tracing::error!(%error, "looking for another server panicked");
            }
            sleep(LOOK_INTERVAL).await;
            drop(look);
        });
    }

    /// Replaces `pool` by one that begins with the connection `found`.
    fn leave(&self, pool: &Arc<Pool>, found: Pooled) {
        let mut pools = self.0.pools.lock();
        pools.former.retain(|former| former.strong_count() > 0);
        if !Arc::ptr_eq(pool, &pools.current) || pools.former.len() >= MOST_FORMER {
            return;
        }
        tracing::warn!("another database server has taken over; the silent one is left");
        let next = Arc::new(Pool::open(&self.0.url, self.0.size, Some(found)));
        let former = std::mem::replace(&mut pools.current, next);
        pools.former.push(Arc::downgrade(&former));
        drop(pools);
        pool.turns.close();
        pool.left.cancel();
    }
}

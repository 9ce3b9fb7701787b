//! What one caller may take of what all share.

use std::time::Duration;

use store::StoreError;
use tokio::time::{Instant, timeout};

use crate::error::ApiError;
use crate::rate_limit::Rate;

/// How often, how much and for how long. The times are those of the service; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How often an organization may call; as it likes if none.
    pub requests: Option<Rate>,
    /// How often a peer may show a token that is not known; as it likes if none.
    pub auth_failures: Option<Rate>,
    /// A worker's connections. An idle one keeps two buffers of 8 KiB, so a full worker of the default holds about
    /// 128 MiB of them.
    pub connections: usize,
    /// A client's connections, or its requests that wait for an answer behind a trusted proxy. Any number if none.
    pub connections_of_client: Option<usize>,
    /// How long a connection may lie idle between requests. Longer than the 60 s after which common load balancers
    /// drop one, so that the side that reuses connections is the one that closes them.
    pub idle_time: Duration,
    /// How long a request's head may take: bounds what a client that drips ties up.
    pub head_time: Duration,
    /// How long a body may take: enough for the largest one over a poor line, and the end of one that drips.
    pub body_time: Duration,
    /// How long a client that reads its answer may take for each [`Limits::ANSWER_STEP`] bytes of it that no longer
    /// fit into the kernel's buffers.
    pub answer_time: Duration,
    /// How long the database may take for all that a request needs of it.
    pub database_time: Duration,
    /// The most bytes of a page's rows, as they are stored. A single larger row is a page.
    pub page_bytes: usize,
    /// The most bytes of large bodies that are being read.
    pub arriving: usize,
    /// About the most memory, in bytes, for what is made of large bodies, and for large answers.
    pub working: usize,
}

impl Limits {
    /// With the default time, a line of 35 kbit/s is fast enough.
    pub const ANSWER_STEP: usize = 64 * 1024;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: None,
            auth_failures: None,
            connections: 8_192,
            connections_of_client: Some(1_024),
            idle_time: Duration::from_secs(75),
            head_time: Duration::from_secs(5),
            body_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(15),
            // The promise is an answer within five seconds; a busy machine has some left.
            database_time: Duration::from_secs(4),
            page_bytes: 8 << 20,
            arriving: 32 << 20,
            working: 96 << 20,
        }
    }
}

/// What is left of [`Limits::database_time`] for a request.
///
/// A database that accepts connections and then says nothing can't be told from a slow one, and the thread that waits
/// for it can't be called back. The request is answered all the same; the thread keeps its place in the pool, so that
/// no more threads can be lost than there are connections, and what it was doing may still be committed.
pub(crate) struct DatabaseTime(Duration);

impl DatabaseTime {
    pub(crate) fn new(left: Duration) -> DatabaseTime {
        DatabaseTime(left)
    }

    /// Waits for `work`, which does nothing slow but ask the database.
    pub(crate) async fn within<T>(
        &mut self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let began = Instant::now();
        let silent = || StoreError::Unavailable("the database does not answer".into());
        let result = timeout(self.0, work).await.map_err(|_| silent())?;
        self.0 = self.0.saturating_sub(began.elapsed());
        result
    }
}

//! The time that a request may wait for the database.

use std::time::Duration;

use store::StoreError;
use tokio::time::{Instant, timeout};

use crate::error::ApiError;

/// The part of [`Limits::database_time`](crate::Limits::database_time) that a request has left.
///
/// A database that accepts connections but never responds can't be distinguished from a slow one, and the
/// thread that waits for it can't be interrupted. The request is answered anyway. The thread keeps its slot
/// in the pool, so that no more threads can be lost than there are connections. Its transaction may still be
/// committed.
pub(crate) struct DatabaseTime(Duration);

impl DatabaseTime {
    pub(crate) fn new(left: Duration) -> DatabaseTime {
        DatabaseTime(left)
    }

    /// Waits for `work` within the time left. `work` must do nothing slow except query the database.
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

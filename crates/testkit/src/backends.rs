//! Runs tests on PostgreSQL and on SQLite.

use std::future::Future;

use crate::Backend;

/// What a test that runs on both databases takes as its argument.
pub trait OnBackend: Sized {
    /// Prepares the argument on one database.
    fn on(backend: Backend) -> impl Future<Output = Self>;
}

impl OnBackend for Backend {
    async fn on(backend: Backend) -> Backend {
        backend
    }
}

/// Runs a test on one database.
pub async fn test_on<A: OnBackend>(backend: Backend, test: impl AsyncFnOnce(A)) {
    test(A::on(backend).await).await;
}

/// Declares tests that run on each database: `async` functions with one argument, an [`OnBackend`].
#[macro_export]
macro_rules! on_both_backends {
    ($($test:ident),* $(,)?) => {$(
        mod $test {
            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                $crate::test_on($crate::Backend::Postgres, super::$test).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                $crate::test_on($crate::Backend::Sqlite, super::$test).await;
            }
        }
    )*};
}

//! The dispatcher on both storage engines, with a real receiver: requests sent, results recorded, retries.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fairness;
mod harness;
mod recovery;
mod refusals;
mod retention;
mod retries;
mod sending;

/// Defines a test of each function for each storage engine.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(testkit::Engine::Postgres).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(testkit::Engine::Sqlite).await;
            })*
        }
    };
}
pub(crate) use on_both_engines;

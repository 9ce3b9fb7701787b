//! The dispatcher on both engines, with a real receiver: what is sent, what is recorded, what follows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fairness;
mod harness;
mod recovery;
mod refusals;
mod retention;
mod retries;
mod sending;

/// Makes a test of each function for each engine.
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

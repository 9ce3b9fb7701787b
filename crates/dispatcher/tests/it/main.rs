//! The dispatcher on both databases, with a real receiver: requests sent, results recorded, retries.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fairness;
mod harness;
mod recovery;
mod refusals;
mod retention;
mod retries;
mod sending;

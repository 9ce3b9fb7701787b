//! Tests of the contract's exact bytes and of rejected input.

#![allow(clippy::unwrap_used)] // helpers outside #[test] too

mod differential;
mod json;
mod payload;
mod properties;
mod run_update;
mod vectors;

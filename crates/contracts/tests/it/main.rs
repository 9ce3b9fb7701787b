//! The contract's bytes and refusals.

#![allow(clippy::unwrap_used)] // helpers outside #[test] too

mod differential;
mod json;
mod payload;
mod properties;
mod run_update;
mod vectors;

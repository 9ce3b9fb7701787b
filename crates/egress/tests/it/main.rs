//! The egress rules through the public API, as tables.
#![allow(clippy::unwrap_used)] // the configured exemption covers test functions only, not their helpers

mod differential;
mod policy;
mod target_url;
mod urls;

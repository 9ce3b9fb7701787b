//! Checks and limits that every call passes.

pub(crate) mod auth;
pub(crate) mod database_time;
pub(crate) mod idempotency;
pub(crate) mod memory;
pub(crate) mod rate_limit;

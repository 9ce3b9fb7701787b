//! The store's conformance suite: one set of tests, run on PostgreSQL (`DATABASE_URL`, or the server on this
//! machine) and on SQLite.

// Clippy does not treat the tests' helpers as test code.
#![allow(clippy::unwrap_used)]

mod backlog;
mod claims;
mod constraints;
mod erasing;
mod failover;
mod finishing;
mod holds;
mod idempotency;
mod inspect;
mod invariants;
mod migrations;
mod pages;
mod pooler;
mod redeliveries;
mod relay;
mod rewrap;
mod round_trips;
mod runs;
mod secrets;
mod stage;
mod store;
mod tokens;
mod withdrawing;

//! Tests of the API over HTTP, on both engines.
#![allow(clippy::unwrap_used)] // the configured exemption covers test functions only, not their helpers

mod auth;
mod contract;
mod description;
mod fields;
mod harness;
mod health;
mod hostile;
mod idempotency;
mod large;
mod limits;
mod logs;
mod organizations;
mod outages;
mod pages;
mod reading;
mod redeliveries;
mod requests;
mod runs;
mod secrets;
mod stopping;
mod withdrawing;

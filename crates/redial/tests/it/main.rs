//! Tests of the real binary, run as a person or an orchestrator would run it.
#![allow(clippy::unwrap_used)] // the configured exemption covers test functions only, not their helpers

mod asking;
mod cli;
mod commands;
mod concurrency;
mod data_care;
mod distributed;
mod doctor;
mod documents;
mod draining;
mod embedded;
mod examples;
mod logging;
mod metrics;
mod rotation;
mod signatures;
mod starting;
mod system;
mod traces;
mod upgrades;

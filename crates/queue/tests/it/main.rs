//! Doorbells over a real RabbitMQ (`AMQP_URL`, or the one on this machine) and in process.

// Clippy takes only the tests themselves for tests, not their helpers.
#![allow(clippy::unwrap_used)]

mod broker;
mod in_process;
mod support;

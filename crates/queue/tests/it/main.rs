//! Tests of doorbells over a real RabbitMQ (`AMQP_URL`, or the local one) and in process.

// Clippy does not treat test helpers as tests.
#![allow(clippy::unwrap_used)]

mod broker;
mod in_process;
mod inspect;
mod support;

//! Throw-away databases, brokers and stacks for tests, and a line to cut between them. A dev-dependency only.
//!
//! The servers are those of `DATABASE_URL` and `AMQP_URL`, or the local ones; everything made on them has a name
//! of its own and is removed again, so tests disturb neither each other nor anything else there.

mod database;
mod fixtures;
mod memory;
mod proxy;
mod rabbit;

pub use database::{Engine, RowLock, TestDatabase};
pub use fixtures::{deliveries_of_run, keyring, terminal_run};
pub use memory::{Changes, HoldRow, MemoryDatabase, Refused};
pub use proxy::Proxy;
pub use rabbit::RabbitNode;

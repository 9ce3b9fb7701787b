//! Throw-away databases, brokers and poolers for tests, and a proxy to cut connections. A dev-dependency only.
//!
//! The servers are those of `DATABASE_URL` and `AMQP_URL`, or the local ones. Everything created on them has
//! a unique name and is removed again, so tests disturb neither each other nor other data.

mod backends;
mod cluster;
mod database;
mod fixtures;
mod memory;
mod pooler;
mod process;
mod proxy;
mod rabbit;

pub use backends::{OnBackend, test_on};
pub use cluster::{Cluster, SessionLock};
pub use database::{Backend, RowLock, TestDatabase};
pub use fixtures::{deliveries_of_run, keyring, terminal_run};
pub use memory::{Changes, HoldRow, MemoryDatabase, Refused};
pub use pooler::Pooler;
pub use process::{Memory, Process, Signal, free_port, percentile};
pub use proxy::Proxy;
pub use rabbit::RabbitNode;

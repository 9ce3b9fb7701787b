//! Migrates the schema while other processes use it, and checks whether this program may use it.
//!
//! The rules are in `migrations/README.md`. diesel's own harness is not used: it has one text for all
//! engines, runs all or nothing in transactions, and does not know about older programs. Its table of applied
//! migrations remains in use.

mod apply;
mod backfill;
mod migrations;
mod state;

pub use apply::{migrate, migrate_to};
pub use migrations::{MIGRATIONS, Migration};
pub(crate) use state::schema_state;
pub use state::{SchemaFacts, SchemaState, schema_facts};

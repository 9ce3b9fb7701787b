//! The migrations, in order. The rules are in `migrations/README.md`.

use crate::columns::DbId;
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::migrate::backfill::{fill_destinations, fill_ended, fill_hosts};

type Fill = fn(&mut AnyConnection) -> Result<(), StoreError>;

/// Backfills a batch of rows after the given id, in order of their ids. Returns the last id of the batch;
/// `None` if no rows are left.
pub(super) type FillBatch = fn(&mut AnyConnection, DbId) -> Result<Option<DbId>, StoreError>;

/// A migration of the schema.
#[derive(Clone, Copy)]
pub struct Migration {
    /// Its number; later migrations have higher numbers.
    pub number: i64,
    /// Its SQL; see `migrations/README.md`.
    pub up: &'static str,
    /// The backfill after the SQL, in the same transaction. (A later backfill would be a migration of its
    /// own.)
    pub(super) fill: Option<Fill>,
    /// The backfill before the SQL. On PostgreSQL each batch has its own transaction.
    pub(super) batches: Option<FillBatch>,
}

macro_rules! migration {
    ($number:literal, $name:literal) => {
        Migration::new($number, include_str!(concat!("../../../../migrations/", $name, "/up.sql")))
    };
}

/// All migrations, in order.
pub const MIGRATIONS: &[Migration] = &[
    migration!(1, "00000000000001_initial"),
    migration!(2, "00000000000002_pages").filled_by(fill_hosts),
    migration!(3, "00000000000003_idempotency_keys"),
    migration!(4, "00000000000004_erasure"),
    migration!(5, "00000000000005_leases"),
    migration!(6, "00000000000006_destinations").filled_by(fill_destinations),
    migration!(7, "00000000000007_attempt_timing"),
    migration!(8, "00000000000008_secret_overlap"),
    migration!(9, "00000000000009_token_ends"),
    migration!(10, "00000000000010_explained_attempts"),
    migration!(11, "00000000000011_explained_attempts_checked"),
    migration!(12, "00000000000012_erased_once"),
    migration!(13, "00000000000013_no_shared_locks"),
    migration!(14, "00000000000014_open_and_ended"),
    migration!(15, "00000000000015_ended_filled").filled_in_batches(fill_ended),
    migration!(16, "00000000000016_narrow_deliveries"),
    migration!(17, "00000000000017_traceparent"),
];

impl Migration {
    /// Creates a migration without a backfill.
    pub const fn new(number: i64, up: &'static str) -> Migration {
        Migration { number, up, fill: None, batches: None }
    }

    const fn filled_by(self, fill: Fill) -> Migration {
        Migration { fill: Some(fill), ..self }
    }

    const fn filled_in_batches(self, batches: FillBatch) -> Migration {
        Migration { batches: Some(batches), ..self }
    }

    /// Returns the number of the oldest program that may run on this schema: the one that the SQL states, or
    /// its own number.
    pub(super) fn oldest_program(&self) -> i64 {
        let stated = self.up.lines().next().and_then(|line| line.strip_prefix("-- Oldest program: "));
        let number = stated.and_then(|text| text.split(' ').next()?.parse().ok());
        number.unwrap_or(self.number)
    }

    /// Returns the statements for the connection's engine.
    pub(super) fn statements(&self, conn: &AnyConnection) -> Vec<String> {
        let other = match conn {
            AnyConnection::Postgres(_) => "-- SQLite:",
            AnyConnection::Sqlite(_) => "-- PostgreSQL:",
        };
        let (mut is_ours, mut statements, mut statement) = (true, Vec::new(), String::new());
        for line in self.up.lines() {
            match line.trim() {
                marker @ ("-- SQLite:" | "-- PostgreSQL:" | "-- Both:") => is_ours = marker != other,
                comment if comment.starts_with("--") => {}
                text if is_ours && !text.is_empty() => {
                    statement.push_str(line);
                    statement.push('\n');
                    if text.ends_with(';') {
                        statements.push(std::mem::take(&mut statement));
                    }
                }
                _ => {}
            }
        }
        statements
    }
}

/// Returns the number of the last migration.
pub(super) fn newest(known: &[Migration]) -> i64 {
    known.last().map_or(0, |migration| migration.number)
}

//! Migrates the schema while other processes use it, and checks whether this program may use it.
//!
//! The rules are in `migrations/README.md`. diesel's own harness is not used: it has one text for all
//! engines, runs all or nothing in transactions, and does not know about older programs. Its table of applied
//! migrations remains in use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use contracts::Destination;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::accept::host;
use crate::columns::{Id, Key};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::prepared;

type Fill = fn(&mut AnyConnection) -> Result<(), StoreError>;

/// Backfills a batch of rows after the given id, in order of their ids. Returns the last id of the batch;
/// `None` if no rows are left.
type FillBatch = fn(&mut AnyConnection, Key) -> Result<Option<Key>, StoreError>;

/// A migration of the schema.
#[derive(Clone, Copy)]
pub struct Migration {
    /// Its number; later migrations have higher numbers.
    pub number: i64,
    /// Its SQL; see `migrations/README.md`.
    pub up: &'static str,
    /// The backfill after the SQL, in the same transaction. (A later backfill would be a migration of its
    /// own.)
    fill: Option<Fill>,
    /// The backfill before the SQL. On PostgreSQL each batch has its own transaction.
    batches: Option<FillBatch>,
}

macro_rules! migration {
    ($number:literal, $name:literal) => {
        Migration::new($number, include_str!(concat!("../../../migrations/", $name, "/up.sql")))
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
    fn oldest_program(&self) -> i64 {
        let stated = self.up.lines().next().and_then(|line| line.strip_prefix("-- Oldest program: "));
        let number = stated.and_then(|text| text.split(' ').next()?.parse().ok());
        number.unwrap_or(self.number)
    }

    /// Returns the statements for the connection's engine.
    fn statements(&self, conn: &AnyConnection) -> Vec<String> {
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

/// How a database's schema fits this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// It has all migrations of this program, and any newer ones admit this program.
    Fits,
    /// Migrations are missing; `redial migrate` applies them.
    Older,
    /// It has a migration that admits only programs from this number on; this program is older.
    Newer(i64),
}

impl SchemaState {
    /// Returns an error unless this program may use the schema.
    pub(crate) fn require(self) -> Result<(), StoreError> {
        match self {
            SchemaState::Fits => Ok(()),
            SchemaState::Older => Err(StoreError::Schema(
                "the database's schema is older than this program: run `redial migrate`".into(),
            )),
            SchemaState::Newer(needed) => Err(StoreError::Schema(format!(
                "the database's schema is newer than this program and admits programs from schema {needed} on, this one \
                 knows {}: update redial",
                newest(MIGRATIONS)
            ))),
        }
    }
}

fn newest(known: &[Migration]) -> i64 {
    known.last().map_or(0, |migration| migration.number)
}

/// Applies the missing migrations and returns their number. Two concurrent calls are safe: the second waits
/// and finds nothing to do. Fails if a newer schema does not admit this program; leaves it unchanged if it
/// does.
pub fn migrate(conn: &mut AnyConnection) -> Result<usize, StoreError> {
    migrate_to(conn, MIGRATIONS)
}

/// Like [`migrate`], with other migrations than this program's: for tests of later programs.
pub fn migrate_to(conn: &mut AnyConnection, migrations: &[Migration]) -> Result<usize, StoreError> {
    match conn {
        // One transaction: BEGIN IMMEDIATE excludes other writers.
        AnyConnection::Sqlite(_) => {
            conn.begin_write()?;
            let applied = apply(conn, migrations, |conn, migration| {
                each_batch(migration, |fill, behind| fill(conn, behind))?;
                run(conn, migration, None)
            });
            conn.end(applied)
        }
        AnyConnection::Postgres(_) => {
            let settings = format!(
                "SET lock_timeout = '{}ms'; SET statement_timeout = 0; SET enable_seqscan = on",
                LOCK_WAIT.as_millis()
            );
            conn.batch_execute(&settings)?;
            take_turn(conn)?;
            let applied = apply(conn, migrations, run_beside_others);
            let unlocked = conn.batch_execute(
                "SET lock_timeout = '5s'; RESET statement_timeout; SET enable_seqscan = off; SELECT pg_advisory_unlock(7351246807413)",
            );
            applied.and_then(|applied| unlocked.map(|()| applied).map_err(Into::into))
        }
    }
}

/// Waits for the migration lock without a timeout. It is a session lock, because indexes are built outside of
/// transactions. It is polled: to build an index, PostgreSQL waits for all running statements, including
/// those that wait for a lock.
fn take_turn(conn: &mut AnyConnection) -> Result<(), StoreError> {
    loop {
        let lock = prepared::<diesel::sql_types::Bool, _>("SELECT pg_try_advisory_lock(7351246807413)");
        if lock.get_result(conn)? {
            return Ok(());
        }
        std::thread::park_timeout(PAUSE / 10); // a command has its own thread
    }
}

fn apply(
    conn: &mut AnyConnection,
    migrations: &[Migration],
    run: fn(&mut AnyConnection, &Migration) -> Result<(), StoreError>,
) -> Result<usize, StoreError> {
    conn.batch_execute(
        "CREATE TABLE IF NOT EXISTS __diesel_schema_migrations (
             version varchar(50) PRIMARY KEY NOT NULL, run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
         CREATE TABLE IF NOT EXISTS schema_admits (number bigint PRIMARY KEY NOT NULL, oldest_program bigint NOT NULL)",
    )?;
    if let newer @ SchemaState::Newer(_) = state(conn, migrations)? {
        newer.require()?;
    }
    let seen = applied(conn)?;
    let missing = migrations.iter().filter(|migration| !seen.contains(&migration.number));
    let mut count = 0;
    for migration in missing {
        run(conn, migration)?;
        count += 1;
    }
    Ok(count)
}

/// Maximum wait for all locks of one transaction together. Meanwhile other sessions queue behind the wait and
/// behind the locks that the transaction already has.
const LOCK_WAIT: Duration = Duration::from_millis(450);
const PAUSE: Duration = Duration::from_secs(1);
/// How long a migration retries to get its locks.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a migration on PostgreSQL while other sessions use the tables.
fn run_beside_others(conn: &mut AnyConnection, migration: &Migration) -> Result<(), StoreError> {
    each_batch(migration, |fill, behind| {
        conn.begin_write()?;
        let filled = fill(conn, behind);
        conn.end(filled)
    })?;
    let statements = migration.statements(conn);
    if !statements.iter().any(|statement| statement.contains(" CONCURRENTLY ")) {
        return patiently(conn, |conn| {
            conn.begin_write()?;
            let ran = run(conn, migration, Some(Instant::now() + LOCK_WAIT));
            conn.end(ran)
        });
    }
    for statement in &statements {
        patiently(conn, |conn| {
            // An earlier try may have left a complete index or an invalid one.
            if let Some(index) = index_of(statement) {
                match is_valid(conn, index)? {
                    Some(true) => return Ok(()),
                    Some(false) => conn.batch_execute(&format!("DROP INDEX CONCURRENTLY {index}"))?,
                    None => {}
                }
            }
            Ok(conn.batch_execute(statement)?)
        })?;
    }
    note(conn, migration)
}

/// Runs the batches of a migration's backfill, if it has any.
fn each_batch(
    migration: &Migration,
    mut fill_one: impl FnMut(FillBatch, Key) -> Result<Option<Key>, StoreError>,
) -> Result<(), StoreError> {
    let Some(batches) = migration.batches else { return Ok(()) };
    let mut behind = Some(Key(uuid::Uuid::nil()));
    while let Some(key) = behind {
        behind = fill_one(batches, key)?;
    }
    Ok(())
}

/// Retries while a lock is not available. (The server's message is localized, so a lock timeout is recognized
/// by its duration.)
fn patiently(
    conn: &mut AnyConnection,
    mut work: impl FnMut(&mut AnyConnection) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let began = Instant::now();
    loop {
        let tried = Instant::now();
        match work(conn) {
            Err(error) if error.may_pass() && !error.is_outage() && tried.elapsed() >= LOCK_WAIT => {
                if began.elapsed() >= PATIENCE {
                    return Err(StoreError::Schema(format!(
                        "a table could not be locked within {} s, as transactions on it last too long; try again: {error}",
                        PATIENCE.as_secs()
                    )));
                }
                tracing::info!("a table is busy, trying again");
                std::thread::park_timeout(PAUSE);
            }
            other => return other,
        }
    }
}

/// Runs a migration in the current transaction. On PostgreSQL `locked_by` is the deadline for all its locks
/// together.
fn run(
    conn: &mut AnyConnection,
    migration: &Migration,
    locked_by: Option<Instant>,
) -> Result<(), StoreError> {
    for statement in migration.statements(conn) {
        if let Some(locked_by) = locked_by {
            let left = locked_by.saturating_duration_since(Instant::now()).as_millis() + 1;
            conn.batch_execute(&format!("SET LOCAL lock_timeout = '{left}ms'"))?;
        }
        conn.batch_execute(&statement)?;
    }
    if let Some(fill) = migration.fill {
        fill(conn)?;
    }
    note(conn, migration)
}

fn note(conn: &mut AnyConnection, migration: &Migration) -> Result<(), StoreError> {
    let (number, oldest) = (migration.number, migration.oldest_program());
    conn.batch_execute(&format!(
        "DELETE FROM schema_admits WHERE number = {number};
         INSERT INTO schema_admits (number, oldest_program) VALUES ({number}, {oldest});
         INSERT INTO __diesel_schema_migrations (version) VALUES ('{number:014}')"
    ))?;
    Ok(())
}

/// Returns the index that a statement builds concurrently.
fn index_of(statement: &str) -> Option<&str> {
    let (_, rest) = statement.split_once("INDEX CONCURRENTLY ")?;
    rest.split_whitespace().next()
}

/// Returns whether an index is valid; `None` if it does not exist.
fn is_valid(conn: &mut AnyConnection, index: &str) -> Result<Option<bool>, StoreError> {
    let valid = prepared::<diesel::sql_types::Bool, _>(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(?)",
    );
    Ok(valid.bind::<Text, _>(index.to_owned()).get_result(conn).optional()?)
}

/// Compares the applied migrations with this program's.
pub(crate) fn schema_state(conn: &mut AnyConnection) -> Result<SchemaState, StoreError> {
    state(conn, MIGRATIONS)
}

fn state(conn: &mut AnyConnection, known: &[Migration]) -> Result<SchemaState, StoreError> {
    if !has_table(conn, "__diesel_schema_migrations")? {
        return Ok(SchemaState::Older);
    }
    let seen = applied(conn)?;
    let own = newest(known);
    let admits: BTreeMap<i64, i64> = match has_table(conn, "schema_admits")? {
        true => prepared::<(BigInt, BigInt), _>("SELECT number, oldest_program FROM schema_admits")
            .load(conn)?
            .into_iter()
            .collect(),
        false => BTreeMap::new(),
    };
    // A migration without a row in `schema_admits` needs a program that knows it.
    let needed =
        seen.iter().filter(|number| **number > own).map(|number| admits.get(number).unwrap_or(number));
    match needed.max() {
        Some(needed) if *needed > own => Ok(SchemaState::Newer(*needed)),
        _ if known.iter().all(|migration| seen.contains(&migration.number)) => Ok(SchemaState::Fits),
        _ => Ok(SchemaState::Older),
    }
}

fn applied(conn: &mut AnyConnection) -> Result<BTreeSet<i64>, StoreError> {
    let versions: Vec<String> =
        prepared::<Text, _>("SELECT version FROM __diesel_schema_migrations").load(conn)?;
    let number = |version: String| {
        version
            .parse()
            .map_err(|_| StoreError::Schema(format!("the schema's version {version} is no number")))
    };
    versions.into_iter().map(number).collect()
}

fn has_table(conn: &mut AnyConnection, name: &str) -> Result<bool, StoreError> {
    let count = match conn {
        AnyConnection::Postgres(_) => "SELECT count(*) FROM pg_class WHERE oid = to_regclass(?)",
        AnyConnection::Sqlite(_) => "SELECT count(*) FROM sqlite_schema WHERE name = ?",
    };
    let count: i64 = prepared::<BigInt, _>(count).bind::<Text, _>(name.to_owned()).get_result(conn)?;
    Ok(count > 0)
}

/// Fills `callback_host` in rows that are older than the column.
fn fill_hosts(conn: &mut AnyConnection) -> Result<(), StoreError> {
    let mut behind = Key(uuid::Uuid::nil());
    loop {
        let rows: Vec<(Key, String)> = prepared::<(Id, Text), _>(
            "SELECT id, callback_url FROM deliveries WHERE callback_host = '' AND id > ? ORDER BY id LIMIT 1000",
        )
        .bind::<Id, _>(behind)
        .load(conn)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        behind = *last;
        for (id, url) in &rows {
            prepared::<(), _>("UPDATE deliveries SET callback_host = ? WHERE id = ?")
                .bind::<Text, _>(host(url))
                .bind::<Id, _>(*id)
                .execute(conn)?;
        }
    }
}

/// Fills `destination` in open rows that are older than the column. Ended rows are skipped: nothing reads it
/// there, and a long history would have to be rewritten.
fn fill_destinations(conn: &mut AnyConnection) -> Result<(), StoreError> {
    type Row = (Key, Key, Key, String);
    let (mut org, mut run) = (Key(uuid::Uuid::nil()), Key(uuid::Uuid::nil()));
    loop {
        // In the order of the index of open deliveries. A run has at most one open delivery.
        let rows: Vec<Row> = prepared::<(Id, Id, Id, Text), _>(
            "SELECT id, org_id, run_id, callback_url FROM deliveries
             WHERE completed_at IS NULL AND destination = 0 AND (org_id, run_id) > (?, ?)
             ORDER BY org_id, run_id LIMIT 1000",
        )
        .bind::<Id, _>(org)
        .bind::<Id, _>(run)
        .load(conn)?;
        let Some((_, last_org, last_run, _)) = rows.last() else { return Ok(()) };
        (org, run) = (*last_org, *last_run);
        for (id, org, _, url) in rows {
            prepared::<(), _>("UPDATE deliveries SET destination = ? WHERE id = ?")
                .bind::<BigInt, _>(Destination::of(org.into(), &url).as_i64())
                .bind::<Id, _>(id)
                .execute(conn)?;
        }
    }
}

/// Copies the results of ended deliveries to `ended_deliveries`. Existing rows remain, so that an interrupted
/// backfill can be resumed.
fn fill_ended(conn: &mut AnyConnection, behind: Key) -> Result<Option<Key>, StoreError> {
    const BATCH: usize = 5_000;
    let ids: Vec<Key> = prepared::<Id, _>("SELECT id FROM deliveries WHERE id > ? ORDER BY id LIMIT ?")
        .bind::<Id, _>(behind)
        .bind::<BigInt, _>(BATCH as i64)
        .load(conn)?;
    let Some(last) = ids.last() else { return Ok(None) };
    prepared::<(), _>(
        "INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code, failure_reason_code,
             failure_detail, attempt_count, created_at, completed_at)
         SELECT id, org_id, callback_host, is_automatic, status_code, failure_reason_code, failure_detail, attempt_count,
             created_at, completed_at
         FROM deliveries WHERE id > ? AND id <= ? AND completed_at IS NOT NULL
         ON CONFLICT DO NOTHING",
    )
    .bind::<Id, _>(behind)
    .bind::<Id, _>(*last)
    .execute(conn)?;
    Ok((ids.len() == BATCH).then_some(*last))
}

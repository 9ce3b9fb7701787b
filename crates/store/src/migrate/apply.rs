//! Applies migrations beside running programs.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Text};

use crate::columns::DbId;
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::migrate::migrations::{FillBatch, MIGRATIONS, Migration};
use crate::migrate::state::{SchemaState, applied, state};
use crate::prepared::prepared;

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
        let lock = prepared::<Bool, _>("SELECT pg_try_advisory_lock(7351246807413)");
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
const TIMEOUT: Duration = Duration::from_secs(120);

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
    mut fill_one: impl FnMut(FillBatch, DbId) -> Result<Option<DbId>, StoreError>,
) -> Result<(), StoreError> {
    let Some(batches) = migration.batches else { return Ok(()) };
    let mut behind = Some(DbId(uuid::Uuid::nil()));
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
                if began.elapsed() >= TIMEOUT {
                    return Err(StoreError::Schema(format!(
                        "a table could not be locked within {} s, as transactions on it last too long; try again: {error}",
                        TIMEOUT.as_secs()
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
    let valid = prepared::<Bool, _>("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(?)");
    Ok(valid.bind::<Text, _>(index.to_owned()).get_result(conn).optional()?)
}

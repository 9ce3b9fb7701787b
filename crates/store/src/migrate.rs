//! Bringing the schema up to date, and telling whether it is.

use std::collections::{BTreeMap, BTreeSet};

use contracts::Destination;
use diesel::connection::SimpleConnection;
use diesel::migration::MigrationSource;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::accept::host;
use crate::columns::{Id, Key};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::prepared::prepared;
use crate::schema::deliveries;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("../../migrations");
const POSTGRES_STORAGE: &str = include_str!("../../../migrations/postgres-storage.sql");

/// How a database's schema compares with this program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// The same.
    Current,
    /// Migrations are missing; `redial migrate` applies them.
    Older,
    /// It has migrations that this program does not know.
    Newer,
}

/// Applies what is missing, in one transaction, and answers how many migrations that were. Two at once are safe:
/// the second waits and finds nothing to do. A schema newer than the program is refused.
pub fn migrate(conn: &mut AnyConnection) -> Result<usize, StoreError> {
    conn.begin_write()?;
    let applied = apply(conn);
    conn.end(applied)
}

fn apply(conn: &mut AnyConnection) -> Result<usize, StoreError> {
    // SQLite's BEGIN IMMEDIATE has shut others out already.
    if matches!(conn, AnyConnection::Postgres(_)) {
        // However long another migration takes.
        conn.batch_execute("SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock(7351246807413)")?;
    }
    if schema_state(conn)? == SchemaState::Newer {
        return Err(StoreError::Schema(
            "the database's schema is newer than this program: update redial".into(),
        ));
    }
    let applied =
        conn.run_pending_migrations(MIGRATIONS).map_err(|error| StoreError::Schema(error.to_string()))?.len();
    if applied > 0 {
        fill_hosts(conn)?;
        fill_destinations(conn)?;
    }
    if matches!(conn, AnyConnection::Postgres(_)) {
        conn.batch_execute(POSTGRES_STORAGE)?;
    }
    Ok(applied)
}

/// Fills `callback_host` in where it is not: in rows that are older than the column.
fn fill_hosts(conn: &mut AnyConnection) -> Result<(), StoreError> {
    let mut behind = Key(uuid::Uuid::nil());
    loop {
        let rows: Vec<(Key, String)> = deliveries::table
            .filter(deliveries::callback_host.eq("").and(deliveries::id.gt(behind)))
            .order_by(deliveries::id)
            .limit(1000)
            .select((deliveries::id, deliveries::callback_url))
            .load(conn)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        behind = *last;
        for (id, url) in &rows {
            let host = host(url);
            diesel::update(deliveries::table.find(id))
                .set(deliveries::callback_host.eq(host))
                .execute(conn)?;
        }
    }
}

/// Fills `destination` in where it is not: in open rows that are older than the column. In one that has ended nothing
/// reads it, and a long history would have to be rewritten.
fn fill_destinations(conn: &mut AnyConnection) -> Result<(), StoreError> {
    type Row = (Key, Key, Key, String);
    let (mut org, mut run) = (Key(uuid::Uuid::nil()), Key(uuid::Uuid::nil()));
    loop {
        // The order of the index of open deliveries, of which a run has at most one.
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
        let mut ids: BTreeMap<Destination, Vec<Key>> = BTreeMap::new();
        for (id, org, _, url) in rows {
            ids.entry(Destination::of(org.into(), &url)).or_default().push(id);
        }
        for (destination, ids) in ids {
            diesel::update(deliveries::table.filter(deliveries::id.eq_any(ids)))
                .set(deliveries::destination.eq(destination.as_i64()))
                .execute(conn)?;
        }
    }
}

/// Compares the migrations the database has seen with those in this program.
pub(crate) fn schema_state(conn: &mut AnyConnection) -> Result<SchemaState, StoreError> {
    let unreadable = |error: Box<dyn std::error::Error + Send + Sync>| {
        // diesel boxes the database's own errors; an outage must stay recognisable.
        match error.downcast::<diesel::result::Error>() {
            Ok(error) => StoreError::Query(*error),
            Err(error) => StoreError::Schema(error.to_string()),
        }
    };
    let known: BTreeSet<String> = MigrationSource::<MultiBackend>::migrations(&MIGRATIONS)
        .map_err(unreadable)?
        .iter()
        .map(|migration| migration.name().version().to_string())
        .collect();
    let seen: BTreeSet<String> =
        conn.applied_migrations().map_err(unreadable)?.iter().map(ToString::to_string).collect();
    Ok(if !seen.is_subset(&known) {
        SchemaState::Newer
    } else if seen == known {
        SchemaState::Current
    } else {
        SchemaState::Older
    })
}

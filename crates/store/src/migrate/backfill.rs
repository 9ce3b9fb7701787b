//! Backfills, each with SQL of its own against the schema of its moment (`migrations/README.md`).

use contracts::Destination;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::columns::{DbId, Id};
use crate::connect::AnyConnection;
use crate::deliveries::accept::callback_host;
use crate::error::StoreError;
use crate::prepared::prepared;

/// Fills `callback_host` in rows that are older than the column.
pub(super) fn fill_hosts(conn: &mut AnyConnection) -> Result<(), StoreError> {
    let mut behind = DbId(uuid::Uuid::nil());
    loop {
        let rows: Vec<(DbId, String)> = prepared::<(Id, Text), _>(
            "SELECT id, callback_url FROM deliveries WHERE callback_host = '' AND id > ? ORDER BY id LIMIT 1000",
        )
        .bind::<Id, _>(behind)
        .load(conn)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        behind = *last;
        for (id, url) in &rows {
            prepared::<(), _>("UPDATE deliveries SET callback_host = ? WHERE id = ?")
                .bind::<Text, _>(callback_host(url))
                .bind::<Id, _>(*id)
                .execute(conn)?;
        }
    }
}

/// Fills `destination` in open rows that are older than the column. Ended rows are skipped: nothing reads it
/// there, and a long history would have to be rewritten.
pub(super) fn fill_destinations(conn: &mut AnyConnection) -> Result<(), StoreError> {
    type Row = (DbId, DbId, DbId, String);
    let (mut org, mut run) = (DbId(uuid::Uuid::nil()), DbId(uuid::Uuid::nil()));
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
pub(super) fn fill_ended(conn: &mut AnyConnection, behind: DbId) -> Result<Option<DbId>, StoreError> {
    const BATCH: usize = 5_000;
    let ids: Vec<DbId> = prepared::<Id, _>("SELECT id FROM deliveries WHERE id > ? ORDER BY id LIMIT ?")
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

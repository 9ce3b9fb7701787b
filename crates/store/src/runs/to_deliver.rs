//! Runs as redelivering reads them, and the lock that keeps them from being removed meanwhile.

use std::collections::HashMap;

use contracts::{OrgId, Run, RunId, SecretId};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable};

use crate::columns::{DbId, Id};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::runs::read::{RunRow, RunSql};

/// A run, and the secret to fix on a new delivery of it.
pub(crate) struct RunToDeliver {
    /// Without its output, metadata and failure texts if they exceed the requested maximum.
    pub(crate) run: Run,
    pub(crate) secret: Option<SecretId>,
    /// The size of these texts in bytes.
    pub(crate) bytes: usize,
}

/// The size in bytes of the texts of a run `r`.
macro_rules! texts_bytes {
    () => {
        "coalesce(octet_length(r.output), 0) + coalesce(octet_length(r.metadata), 0)
         + coalesce(octet_length(r.failure_code), 0) + coalesce(octet_length(r.failure_message), 0)
         + coalesce(octet_length(r.failure_stage_code), 0)"
    };
}

/// The columns of a [`RunRow`], the current secret and the size, from a run `r` with a secret `s`. `b` tells
/// whether to read its texts.
macro_rules! run_to_deliver {
    () => {
        "r.org_id, r.id, r.status_code, CASE WHEN b.is_read THEN r.output END, r.duration_ms, r.created_at, r.started_at,
         r.completed_at, r.callback_url, CASE WHEN b.is_read THEN r.metadata END,
         CASE WHEN b.is_read THEN r.failure_code END, CASE WHEN b.is_read THEN r.failure_message END,
         CASE WHEN b.is_read THEN r.failure_stage_code END, r.updated_at, s.id, b.bytes"
    };
}

/// The key of an advisory lock: exclusive for removing runs or erasing their data, shared for creating
/// deliveries of them.
const RUNS_LOCK: i64 = 7351246807415;

/// Takes the shared lock, which protects all runs from removal and erasure until this transaction ends,
/// without writing anything. Returns `false` if another session holds the lock exclusively.
fn try_lock_runs_shared(pg: &mut PgConnection) -> QueryResult<bool> {
    prepared::<Bool, _>("SELECT pg_try_advisory_xact_lock_shared(?)")
        .bind::<BigInt, _>(RUNS_LOCK)
        .get_result(pg)
}

/// Takes the exclusive lock, for removing or erasing runs whose rows this transaction has locked. Waits for
/// the holders of the shared lock, and sees all their writes. Later transactions lock the rows of their runs
/// instead.
pub(crate) fn lock_runs_exclusively(tx: &mut AnyConnection) -> QueryResult<()> {
    let AnyConnection::Postgres(pg) = tx else { return Ok(()) };
    let lock = prepared::<(), _>("SELECT pg_advisory_xact_lock(?)").bind::<BigInt, _>(RUNS_LOCK);
    lock.execute(pg).map(drop)
}

/// Selects runs by their keys, with only one possible plan, regardless of the planner's statistics.
macro_rules! find_runs_on_postgres {
    ($lock:literal) => {
        concat!(
            "SELECT ",
            run_to_deliver!(),
            " FROM unnest(?, ?) AS k (org_id, id)
             CROSS JOIN LATERAL (SELECT * FROM runs WHERE org_id = k.org_id AND id = k.id",
            $lock,
            ") AS r
             CROSS JOIN LATERAL (SELECT ",
            texts_bytes!(),
            " AS bytes) AS n
             CROSS JOIN LATERAL (SELECT n.bytes::bigint, n.bytes <= ? AS is_read) AS b
             LEFT JOIN LATERAL (SELECT id FROM signing_secrets WHERE org_id = r.org_id AND is_current) AS s ON TRUE"
        )
    };
}

/// Returns the runs among `keys` that exist. Texts of runs larger than `max_bytes` are not read. The runs
/// can't be erased until this transaction, which inserts their deliveries, ends.
pub(crate) fn find_runs_to_deliver(
    tx: &mut AnyConnection,
    keys: &[(OrgId, RunId)],
    max_bytes: usize,
) -> Result<HashMap<(OrgId, RunId), RunToDeliver>, StoreError> {
    type RunToDeliverSql = (RunSql, Nullable<Id>, BigInt);
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let rows: Vec<(RunRow, Option<DbId>, i64)> = match tx {
        AnyConnection::Postgres(pg) => {
            let text = match try_lock_runs_shared(pg)? {
                true => find_runs_on_postgres!(""),
                false => find_runs_on_postgres!(" FOR KEY SHARE"),
            };
            let mut keys = keys.to_vec();
            keys.sort_unstable(); // in the same order everywhere, without duplicates
            keys.dedup();
            prepared::<RunToDeliverSql, _>(text)
                .bind::<Array<Id>, _>(column(&keys, |(org, _)| DbId::from(*org)))
                .bind::<Array<Id>, _>(column(&keys, |(_, run)| DbId::from(*run)))
                .bind::<BigInt, _>(max_bytes)
                .load(pg)?
        }
        AnyConnection::Sqlite(_) => {
            let mut rows = Vec::with_capacity(keys.len());
            for (org, run) in keys {
                let found = prepared::<RunToDeliverSql, _>(concat!(
                    "SELECT ",
                    run_to_deliver!(),
                    " FROM runs r JOIN (SELECT org_id, id, bytes, bytes <= ? AS is_read FROM (SELECT r.org_id, r.id, ",
                    texts_bytes!(),
                    " AS bytes FROM runs r WHERE r.org_id = ? AND r.id = ?)) AS b ON b.org_id = r.org_id AND b.id = r.id
                     LEFT JOIN signing_secrets s ON s.org_id = r.org_id AND s.is_current",
                ))
                .bind::<BigInt, _>(max_bytes)
                .bind::<Id, _>(DbId::from(*org))
                .bind::<Id, _>(DbId::from(*run));
                rows.extend(found.get_result::<(RunRow, Option<DbId>, i64)>(tx).optional()?);
            }
            rows
        }
    };
    let keyed = |(row, secret, bytes): (RunRow, Option<DbId>, i64)| {
        let run = Run::try_from(row)?;
        let bytes = usize::try_from(bytes).unwrap_or(0);
        Ok(((run.org_id, run.id), RunToDeliver { run, secret: secret.map(SecretId::from), bytes }))
    };
    rows.into_iter().map(keyed).collect()
}

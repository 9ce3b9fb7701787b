//! Prunes rows that ended long ago: deliveries with their attempts, and runs without deliveries.

use contracts::{DeliveryStatus, OrgId, RunStatus, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use strum::VariantArray;

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::page::Position;
use crate::prepared::prepared;
use crate::runs::to_deliver::lock_runs_exclusively;
use crate::schema::{attempts, deliveries, ended_deliveries, erased_parts, runs};

/// Rows that are adjacent in one index, oldest first, and ended before a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneRange {
    /// The organization.
    pub org_id: OrgId,
    /// The kind of rows.
    pub kind: PruneKind,
    /// The rows ended before this time.
    pub before: Timestamp,
}

/// A kind of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PruneKind {
    Deliveries {
        status_code: DeliveryStatus,
        is_automatic: bool,
    },
    /// Runs without deliveries.
    Runs {
        status_code: RunStatus,
    },
}

/// The number of rows that one batch removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deliveries.
    pub deliveries: usize,
    /// Their attempts.
    pub attempts: usize,
    /// Runs.
    pub runs: usize,
    /// The next batch starts after this row; `None` if the range is done.
    pub behind: Option<Position>,
}

impl Pruned {
    /// Adds the numbers of another batch.
    pub fn add(&mut self, batch: &Pruned) {
        self.deliveries += batch.deliveries;
        self.attempts += batch.attempts;
        self.runs += batch.runs;
    }
}

impl PruneRange {
    /// Returns all ranges of an organization's deliveries, then of its runs, that ended before the given
    /// times. A kind whose time is `None` has no ranges.
    pub fn all_of(
        org_id: OrgId,
        deliveries: Option<Timestamp>,
        runs: Option<Timestamp>,
    ) -> impl Iterator<Item = PruneRange> {
        let ended = [DeliveryStatus::Succeeded, DeliveryStatus::Failed].into_iter();
        let of_deliveries = ended.flat_map(|status_code| {
            [true, false].map(|is_automatic| PruneKind::Deliveries { status_code, is_automatic })
        });
        let ended = RunStatus::VARIANTS.iter().copied().filter(|status| status.is_terminal());
        let of_runs = ended.map(|status_code| PruneKind::Runs { status_code });
        let before =
            |moment: Option<Timestamp>| move |kind| Some(PruneRange { org_id, kind, before: moment? });
        of_deliveries.filter_map(before(deliveries)).chain(of_runs.filter_map(before(runs)))
    }
}

/// Tries to take the lock of automatic pruning until the transaction ends, and returns whether it succeeded.
pub fn take_pruning_turn(tx: &mut AnyConnection) -> Result<bool, StoreError> {
    match tx {
        AnyConnection::Postgres(pg) => {
            Ok(prepared::<Bool, _>("SELECT pg_try_advisory_xact_lock(7351246807414)").get_result(pg)?)
        }
        // SQLite has one writer at a time, which is this transaction.
        AnyConnection::Sqlite(_) => Ok(true),
    }
}

/// Removes up to `limit` rows of a range. Skips rows locked by another session; the next pruning removes
/// them.
pub fn prune(
    tx: &mut AnyConnection,
    range: PruneRange,
    behind: Option<Position>,
    limit: usize,
) -> Result<Pruned, StoreError> {
    let from = match behind {
        Some(Position { created_at, id }) => (DbTime::from(created_at), DbId(id)),
        None => (DbTime::from(Timestamp::from_micros(0)), DbId(uuid::Uuid::nil())),
    };
    match range.kind {
        PruneKind::Deliveries { status_code, is_automatic } => {
            prune_deliveries(tx, range, (status_code, is_automatic), from, limit)
        }
        PruneKind::Runs { status_code } => prune_runs(tx, range, status_code, from, limit),
    }
}

fn prune_deliveries(
    tx: &mut AnyConnection,
    range: PruneRange,
    (status_code, is_automatic): (DeliveryStatus, bool),
    (begin, first): (DbTime, DbId),
    limit: usize,
) -> Result<Pruned, StoreError> {
    // A delivery ends after it was created, so `before` bounds both times, and the index is over
    // `created_at`.
    let text = match tx {
        AnyConnection::Postgres(_) => {
            "SELECT id, created_at FROM ended_deliveries
             WHERE org_id = ? AND status_code = ? AND is_automatic = ? AND (created_at, id) > (?, ?)
               AND created_at < ? AND completed_at < ?
             ORDER BY created_at, id LIMIT ? FOR UPDATE SKIP LOCKED"
        }
        AnyConnection::Sqlite(_) => {
            "SELECT id, created_at FROM ended_deliveries
             WHERE org_id = ? AND status_code = ? AND is_automatic = ? AND (created_at, id) > (?, ?)
               AND created_at < ? AND completed_at < ?
             ORDER BY created_at, id LIMIT ?"
        }
    };
    let rows: Vec<(DbId, DbTime)> = prepared::<(Id, Moment), _>(text)
        .bind::<Id, _>(DbId::from(range.org_id))
        .bind::<Text, _>(<&str>::from(status_code))
        .bind::<Bool, _>(is_automatic)
        .bind::<Moment, _>(begin)
        .bind::<Id, _>(first)
        .bind::<Moment, _>(DbTime::from(range.before))
        .bind::<Moment, _>(DbTime::from(range.before))
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(tx)?;
    let ids: Vec<DbId> = rows.iter().map(|(id, _)| *id).collect();
    diesel::delete(erased_parts::table.filter(erased_parts::delivery_id.eq_any(&ids))).execute(tx)?;
    let attempts = diesel::delete(attempts::table.filter(attempts::delivery_id.eq_any(&ids))).execute(tx)?;
    diesel::delete(ended_deliveries::table.filter(ended_deliveries::id.eq_any(&ids))).execute(tx)?;
    let removed = diesel::delete(deliveries::table.filter(deliveries::id.eq_any(&ids))).execute(tx)?;
    Ok(Pruned { deliveries: removed, attempts, runs: 0, behind: last_of(&rows, limit) })
}

/// Reads candidates whether or not they have deliveries, so that a batch is bounded.
fn prune_runs(
    tx: &mut AnyConnection,
    range: PruneRange,
    status_code: RunStatus,
    (begin, first): (DbTime, DbId),
    limit: usize,
) -> Result<Pruned, StoreError> {
    let rows: Vec<(DbId, DbTime)> = prepared::<(Id, Moment), _>(
        "SELECT id, created_at FROM runs
         WHERE org_id = ? AND status_code = ? AND (created_at, id) > (?, ?) AND created_at < ?
         ORDER BY created_at, id LIMIT ?",
    )
    .bind::<Id, _>(DbId::from(range.org_id))
    .bind::<Text, _>(<&str>::from(status_code))
    .bind::<Moment, _>(begin)
    .bind::<Id, _>(first)
    .bind::<Moment, _>(DbTime::from(range.before))
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .load(tx)?;
    let org = DbId::from(range.org_id);
    let mut ids: Vec<DbId> = rows.iter().map(|(id, _)| *id).collect();
    // Locks the runs first: then no further delivery of them can be accepted, and accepted ones are visible.
    if let AnyConnection::Postgres(pg) = tx {
        ids = prepared::<Id, _>(
            "SELECT id FROM runs WHERE org_id = ? AND id = ANY(?) ORDER BY id FOR UPDATE SKIP LOCKED",
        )
        .bind::<Id, _>(org)
        .bind::<Array<Id>, _>(ids)
        .load(pg)?;
    }
    lock_runs_exclusively(tx)?;
    // The producer's times may be arbitrary, so the last update must be old as well.
    let is_old = runs::completed_at
        .lt(DbTime::from(range.before))
        .and(runs::updated_at.lt(DbTime::from(range.before)));
    let its_deliveries =
        deliveries::table.filter(deliveries::org_id.eq(runs::org_id)).filter(deliveries::run_id.eq(runs::id));
    let ids: Vec<DbId> = runs::table
        .filter(runs::org_id.eq(org))
        .filter(runs::id.eq_any(&ids))
        .filter(is_old)
        .filter(diesel::dsl::not(diesel::dsl::exists(its_deliveries)))
        .select(runs::id)
        .load(tx)?;
    let of_org = erased_parts::org_id.eq(org);
    diesel::delete(erased_parts::table.filter(of_org).filter(erased_parts::run_id.eq_any(&ids)))
        .execute(tx)?;
    let removed =
        diesel::delete(runs::table.filter(runs::org_id.eq(org)).filter(runs::id.eq_any(&ids))).execute(tx)?;
    Ok(Pruned { runs: removed, behind: last_of(&rows, limit), ..Pruned::default() })
}

/// Returns the position at which the next batch starts, if this batch was full.
fn last_of(rows: &[(DbId, DbTime)], limit: usize) -> Option<Position> {
    let (id, created_at) = rows.last().filter(|_| rows.len() == limit)?;
    Some(Position { created_at: (*created_at).into(), id: id.0 })
}

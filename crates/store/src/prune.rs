//! Removing what ended long ago: deliveries with their attempts, and runs that have no delivery left.

use contracts::{DeliveryStatus, OrgId, RunStatus, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use strum::VariantArray;

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::page::Position;
use crate::prepared::prepared;
use crate::runs::wait_for_keepers;
use crate::schema::{attempts, deliveries, ended_deliveries, erased_parts, runs};

/// What is next to each other in one index, oldest first, and ended before a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneRange {
    /// Whose.
    pub org_id: OrgId,
    /// What of it.
    pub kind: PruneKind,
    /// When it must have ended.
    pub before: Timestamp,
}

/// Rows of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PruneKind {
    Deliveries {
        status_code: DeliveryStatus,
        is_automatic: bool,
    },
    /// Those that have no delivery.
    Runs {
        status_code: RunStatus,
    },
}

/// What one batch removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deliveries.
    pub deliveries: usize,
    /// Their attempts.
    pub attempts: usize,
    /// Runs.
    pub runs: usize,
    /// Behind which row the next batch begins; none when the range is done.
    pub behind: Option<Position>,
}

impl Pruned {
    /// Adds what another batch removed.
    pub fn add(&mut self, batch: &Pruned) {
        self.deliveries += batch.deliveries;
        self.attempts += batch.attempts;
        self.runs += batch.runs;
    }
}

impl PruneRange {
    /// All ranges of an organization's deliveries, and then of its runs, that ended before those moments; none of a kind
    /// without one.
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

/// For [`prune`], when it is done by itself: whether it is this process's turn, until the transaction ends.
pub fn take_pruning_turn(tx: &mut AnyConnection) -> Result<bool, StoreError> {
    match tx {
        AnyConnection::Postgres(pg) => {
            Ok(prepared::<Bool, _>("SELECT pg_try_advisory_xact_lock(7351246807414)").get_result(pg)?)
        }
        // Its one writer has taken it.
        AnyConnection::Sqlite(_) => Ok(true),
    }
}

/// Removes up to `limit` rows of a range. Those that somebody else has locked are passed over: the next time they will be
/// older still.
pub fn prune(
    tx: &mut AnyConnection,
    range: PruneRange,
    behind: Option<Position>,
    limit: usize,
) -> Result<Pruned, StoreError> {
    let from = match behind {
        Some(Position { created_at, id }) => (Time::from(created_at), Key(id)),
        None => (Time::from(Timestamp::from_micros(0)), Key(uuid::Uuid::nil())),
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
    (begin, first): (Time, Key),
    limit: usize,
) -> Result<Pruned, StoreError> {
    // A delivery ends after it was made, so `before` bounds both, and the index is over the making.
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
    let rows: Vec<(Key, Time)> = prepared::<(Id, Moment), _>(text)
        .bind::<Id, _>(Key::from(range.org_id))
        .bind::<Text, _>(<&str>::from(status_code))
        .bind::<Bool, _>(is_automatic)
        .bind::<Moment, _>(begin)
        .bind::<Id, _>(first)
        .bind::<Moment, _>(Time::from(range.before))
        .bind::<Moment, _>(Time::from(range.before))
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(tx)?;
    let ids: Vec<Key> = rows.iter().map(|(id, _)| *id).collect();
    diesel::delete(erased_parts::table.filter(erased_parts::delivery_id.eq_any(&ids))).execute(tx)?;
    let attempts = diesel::delete(attempts::table.filter(attempts::delivery_id.eq_any(&ids))).execute(tx)?;
    diesel::delete(ended_deliveries::table.filter(ended_deliveries::id.eq_any(&ids))).execute(tx)?;
    let removed = diesel::delete(deliveries::table.filter(deliveries::id.eq_any(&ids))).execute(tx)?;
    Ok(Pruned { deliveries: removed, attempts, runs: 0, behind: last_of(&rows, limit) })
}

/// The candidates are read whether or not they have deliveries, so that a batch is bounded.
fn prune_runs(
    tx: &mut AnyConnection,
    range: PruneRange,
    status_code: RunStatus,
    (begin, first): (Time, Key),
    limit: usize,
) -> Result<Pruned, StoreError> {
    let rows: Vec<(Key, Time)> = prepared::<(Id, Moment), _>(
        "SELECT id, created_at FROM runs
         WHERE org_id = ? AND status_code = ? AND (created_at, id) > (?, ?) AND created_at < ?
         ORDER BY created_at, id LIMIT ?",
    )
    .bind::<Id, _>(Key::from(range.org_id))
    .bind::<Text, _>(<&str>::from(status_code))
    .bind::<Moment, _>(begin)
    .bind::<Id, _>(first)
    .bind::<Moment, _>(Time::from(range.before))
    .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
    .load(tx)?;
    let org = Key::from(range.org_id);
    let mut ids: Vec<Key> = rows.iter().map(|(id, _)| *id).collect();
    // Locked first: then no delivery of it can be accepted any more, and those that were are seen.
    if let AnyConnection::Postgres(pg) = tx {
        ids = prepared::<Id, _>(
            "SELECT id FROM runs WHERE org_id = ? AND id = ANY(?) ORDER BY id FOR UPDATE SKIP LOCKED",
        )
        .bind::<Id, _>(org)
        .bind::<Array<Id>, _>(ids)
        .load(pg)?;
    }
    wait_for_keepers(tx)?;
    // Moments that the producer gave say nothing: a run is as old as what was last told of it.
    let is_old =
        runs::completed_at.lt(Time::from(range.before)).and(runs::updated_at.lt(Time::from(range.before)));
    let its_deliveries =
        deliveries::table.filter(deliveries::org_id.eq(runs::org_id)).filter(deliveries::run_id.eq(runs::id));
    let ids: Vec<Key> = runs::table
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

/// Where the next batch begins, if this one was full.
fn last_of(rows: &[(Key, Time)], limit: usize) -> Option<Position> {
    let (id, created_at) = rows.last().filter(|_| rows.len() == limit)?;
    Some(Position { created_at: (*created_at).into(), id: id.0 })
}

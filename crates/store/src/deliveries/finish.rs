//! Records attempt results: inserts the attempts and moves their deliveries, in one transaction per batch.

use std::collections::{HashMap, HashSet};

use contracts::{DeliveryId, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::Array;
use engine::protection::{Protection, is_off};
use engine::{AttemptResult, Effect, HoldChange, Settlement, Transition};

use crate::columns::{DbId, Id};
use crate::connect::AnyConnection;
use crate::deliveries::attempts::insert_attempts;
use crate::deliveries::holds::{holds_locked_elsewhere, write_holds};
use crate::deliveries::late::finish_late;
use crate::deliveries::open::{OpenDelivery, WhenLocked, lock_open};
use crate::deliveries::transitions::move_locked;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::{attempts, deliveries};

/// Writes a batch of results and returns the effect of each, in the batch's order. A result applies only if
/// its delivery's state and claim id match. A batch has at most one result per delivery. Never waits for
/// another session: results whose row is locked are skipped and must be retried.
pub fn finish(
    tx: &mut AnyConnection,
    now: Timestamp,
    batch: &[AttemptResult],
) -> Result<Vec<Effect>, StoreError> {
    let mut open = lock_open(tx, batch.iter().map(|result| result.delivery_id), WhenLocked::PassOver)?;
    // A hold is written to its destination's row, which another session may have locked.
    let elsewhere = holds_locked_elsewhere(tx, batch)?;
    let is_blocked =
        |result: &AttemptResult| result.hold != HoldChange::None && elsewhere.contains(&result.destination);
    let is_ours = |result: &&AttemptResult| {
        !is_blocked(result) && open.get(&result.delivery_id).is_some_and(|row| is_held_by(row, result))
    };
    let ours: Vec<&AttemptResult> = batch.iter().filter(is_ours).collect();
    let others = batch.iter().filter(|result| !open.contains_key(&result.delivery_id));
    let others = lock_ended(tx, &others.map(|result| result.delivery_id).collect::<Vec<_>>())?;
    let place = |result: &AttemptResult| match open.get(&result.delivery_id) {
        Some(_) if is_blocked(result) => Place::Locked,
        Some(row) if is_held_by(row, result) => Place::Ours,
        Some(_) => Place::Elsewhere,
        None => others.get(&result.delivery_id).copied().unwrap_or(Place::Gone),
    };
    let places: Vec<Place> = batch.iter().map(place).collect();
    record(tx, now, &ours, &mut open)?;
    let effect = |(result, place): (&AttemptResult, Place)| match place {
        Place::Ours => Ok(Effect::Recorded),
        Place::Elsewhere => finish_late(tx, now, result),
        Place::Locked => Ok(Effect::Locked),
        Place::Gone => Ok(Effect::Dropped),
    };
    batch.iter().zip(places).map(effect).collect()
}

/// The state of a result's delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Locked by this transaction and held under the result's claim.
    Ours,
    /// Locked by this transaction, but ended or no longer held under that claim.
    Elsewhere,
    /// Locked by another session.
    Locked,
    Gone,
}

fn is_held_by(row: &OpenDelivery, result: &AttemptResult) -> bool {
    row.claim_id.is_some_and(|claim| claim == result.claim_id || is_off(Protection::Fencing))
}

/// Records the results of attempts that are still held and whose rows are locked.
pub(super) fn record(
    tx: &mut AnyConnection,
    now: Timestamp,
    results: &[&AttemptResult],
    locked: &mut HashMap<DeliveryId, OpenDelivery>,
) -> Result<(), StoreError> {
    if results.is_empty() {
        return Ok(());
    }
    let was_handed_back = |result: &&AttemptResult| matches!(result.settlement, Settlement::HandedBack(_));
    let made: Vec<&AttemptResult> =
        results.iter().copied().filter(|result| !was_handed_back(result)).collect();
    insert_attempts(tx, &made)?;
    let succeeded = accepted_earlier(tx, results)?;
    let ended = |result: &&AttemptResult| {
        Transition::attempt_ended(result, succeeded.contains(&result.delivery_id), now)
    };
    move_locked(tx, locked, &results.iter().map(ended).collect::<Vec<_>>())?;
    Ok(write_holds(tx, now, results)?)
}

/// Locks the ended deliveries among `ids`, and returns the place of each delivery. `Locked`: another session
/// has locked or just moved it. Deliveries that no longer exist are omitted.
fn lock_ended(tx: &mut AnyConnection, ids: &[DeliveryId]) -> QueryResult<HashMap<DeliveryId, Place>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = column(ids, |id| DbId::from(*id));
    let ended: Vec<DbId> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "SELECT id FROM ended_deliveries WHERE id = ANY (?) ORDER BY id FOR UPDATE SKIP LOCKED",
        )
        .bind::<Array<Id>, _>(&ids)
        .load(pg)?,
        // SQLite has one writer, so every row is available.
        AnyConnection::Sqlite(_) => ids.clone(),
    };
    let known: Vec<DbId> =
        deliveries::table.filter(deliveries::id.eq_any(&ids)).select(deliveries::id).load(tx)?;
    let place = |id: DbId| if ended.contains(&id) { Place::Elsewhere } else { Place::Locked };
    Ok(known.into_iter().map(|id| (id.into(), place(id))).collect())
}

/// Returns the deliveries whose attempt failed or was not sent, but that have a 2xx on record: the late
/// result of an earlier attempt, which arrived while this attempt was in flight. They have succeeded and need
/// no further attempt.
fn accepted_earlier(tx: &mut AnyConnection, ours: &[&AttemptResult]) -> QueryResult<HashSet<DeliveryId>> {
    let failed_again = |r: &&&AttemptResult| r.record.number > 1 && r.settlement != Settlement::Succeeded;
    let failed_again: Vec<DbId> = ours.iter().filter(failed_again).map(|r| r.delivery_id.into()).collect();
    if failed_again.is_empty() || is_off(Protection::SuccessIsFinal) {
        return Ok(HashSet::new());
    }
    let accepted: Vec<DbId> = attempts::table
        .filter(attempts::delivery_id.eq_any(failed_again))
        .filter(attempts::failure_reason_code.is_null())
        .select(attempts::delivery_id)
        .load(tx)?;
    Ok(accepted.into_iter().map(DeliveryId::from).collect())
}

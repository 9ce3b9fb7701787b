//! Records attempt results: inserts the attempts and moves their deliveries, in one transaction per batch.

use std::collections::{HashMap, HashSet};

use contracts::{DeliveryId, Timestamp, Timing};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use engine::protection::{Protection, is_off};
use engine::{AttemptRecord, AttemptResult, Effect, HoldChange, Settlement, Transition};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::{attempts, deliveries};
use crate::steps::holds::{holds_locked_elsewhere, write_holds};
use crate::steps::late::finish_late;
use crate::steps::open::{OpenDelivery, WhenLocked, lock_open};
use crate::steps::transitions::move_locked;

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
    let ids = column(ids, |id| Key::from(*id));
    let ended: Vec<Key> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "SELECT id FROM ended_deliveries WHERE id = ANY (?) ORDER BY id FOR UPDATE SKIP LOCKED",
        )
        .bind::<Array<Id>, _>(&ids)
        .load(pg)?,
        // SQLite has one writer, so every row is available.
        AnyConnection::Sqlite(_) => ids.clone(),
    };
    let known: Vec<Key> =
        deliveries::table.filter(deliveries::id.eq_any(&ids)).select(deliveries::id).load(tx)?;
    let place = |id: Key| if ended.contains(&id) { Place::Elsewhere } else { Place::Locked };
    Ok(known.into_iter().map(|id| (id.into(), place(id))).collect())
}

fn insert_attempts(tx: &mut AnyConnection, ours: &[&AttemptResult]) -> QueryResult<()> {
    match tx {
        AnyConnection::Postgres(_) if ours.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            prepared::<(), _>(
                "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                     response_time_ms, failure_reason_code, failure_detail, created_at, resolve_ms, connect_ms,
                     tls_ms, send_ms, wait_ms, body_ms, remote_address, content_type, response_headers)
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind::<Array<Id>, _>(column(ours, |r| Key::from(r.record.id)))
            .bind::<Array<Id>, _>(column(ours, |r| Key::from(r.delivery_id)))
            .bind::<Array<Integer>, _>(column(ours, |r| r.record.number))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.status_code))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.response_body.as_deref()))
            .bind::<Array<Nullable<BigInt>>, _>(column(ours, |r| r.record.response_time_ms))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| reason(&r.record)))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| detail(&r.record)))
            .bind::<Array<Moment>, _>(column(ours, |r| Time::from(r.record.claimed_at)))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.resolve))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.connect))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.tls))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.send))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.wait))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.timing.body))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.timing.remote_address.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.timing.content_type.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| response_headers(&r.record.timing)))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for r in ours {
                prepared::<(), _>(
                    "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                         response_time_ms, failure_reason_code, failure_detail, created_at, resolve_ms, connect_ms,
                         tls_ms, send_ms, wait_ms, body_ms, remote_address, content_type, response_headers)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind::<Id, _>(Key::from(r.record.id))
                .bind::<Id, _>(Key::from(r.delivery_id))
                .bind::<Integer, _>(r.record.number)
                .bind::<Nullable<Integer>, _>(r.record.status_code)
                .bind::<Nullable<Text>, _>(r.record.response_body.as_deref())
                .bind::<Nullable<BigInt>, _>(r.record.response_time_ms)
                .bind::<Nullable<Text>, _>(reason(&r.record))
                .bind::<Nullable<Text>, _>(detail(&r.record))
                .bind::<Moment, _>(Time::from(r.record.claimed_at))
                .bind::<Nullable<Integer>, _>(r.record.timing.resolve)
                .bind::<Nullable<Integer>, _>(r.record.timing.connect)
                .bind::<Nullable<Integer>, _>(r.record.timing.tls)
                .bind::<Nullable<Integer>, _>(r.record.timing.send)
                .bind::<Nullable<Integer>, _>(r.record.timing.wait)
                .bind::<Nullable<Integer>, _>(r.record.timing.body)
                .bind::<Nullable<Text>, _>(r.record.timing.remote_address.as_deref())
                .bind::<Nullable<Text>, _>(r.record.timing.content_type.as_deref())
                .bind::<Nullable<Text>, _>(response_headers(&r.record.timing))
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

/// Returns the deliveries whose attempt failed or was not sent, but that have a 2xx on record: the late
/// result of an earlier attempt, which arrived while this attempt was in flight. They have succeeded and need
/// no further attempt.
fn accepted_earlier(tx: &mut AnyConnection, ours: &[&AttemptResult]) -> QueryResult<HashSet<DeliveryId>> {
    let failed_again = |r: &&&AttemptResult| r.record.number > 1 && r.settlement != Settlement::Succeeded;
    let failed_again: Vec<Key> = ours.iter().filter(failed_again).map(|r| r.delivery_id.into()).collect();
    if failed_again.is_empty() || is_off(Protection::SuccessIsFinal) {
        return Ok(HashSet::new());
    }
    let accepted: Vec<Key> = attempts::table
        .filter(attempts::delivery_id.eq_any(failed_again))
        .filter(attempts::failure_reason_code.is_null())
        .select(attempts::delivery_id)
        .load(tx)?;
    Ok(accepted.into_iter().map(DeliveryId::from).collect())
}

pub(super) fn reason(record: &AttemptRecord) -> Option<&'static str> {
    record.failure.as_ref().map(|failure| failure.reason.into())
}

pub(super) fn detail(record: &AttemptRecord) -> Option<&str> {
    record.failure.as_ref().map(|failure| failure.detail.as_str())
}

/// Returns the selected response headers in their stored form.
pub(super) fn response_headers(timing: &Timing) -> Option<String> {
    let headers = timing.headers.as_ref()?;
    Some(serde_json::to_string(headers).expect("a map of texts is JSON"))
}

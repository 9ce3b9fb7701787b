//! Finishing: an attempt's record is written and its delivery moves on, in one transaction for a batch.

use std::collections::{HashMap, HashSet};

use contracts::{AttemptId, AttemptNumber, ClaimId, DeliveryId, FailureReason, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::engine::late::finish_late;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::attempts;

/// What an attempt came to and what follows: everything the database needs to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The claim the attempt was made under.
    pub claim_id: ClaimId,
    /// What goes on record.
    pub record: AttemptRecord,
    /// What follows.
    pub settlement: Settlement,
}

/// The record of one attempt.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AttemptRecord {
    pub id: AttemptId,
    pub number: AttemptNumber,
    /// None after a 2xx.
    pub failure: Option<Failure>,
    pub status_code: Option<i32>,
    pub response_body: Option<String>,
    pub response_time_ms: Option<i64>,
    pub claimed_at: Timestamp,
}

/// Why an attempt failed: a word for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Failure {
    pub reason: FailureReason,
    pub detail: String,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The receiver answered 2xx.
    Succeeded,
    /// Another attempt at that time.
    RetryAt(Timestamp),
    /// No more attempts.
    Failed,
}

/// What became of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Recorded, and the delivery moved on.
    Finished,
    /// It came after its lease had ended and been recorded as `outcome_unknown`: that record now tells what
    /// happened. `closed` when it was a 2xx and the delivery was waiting, which has succeeded now; if a newer
    /// attempt is being made, its end closes the delivery.
    Late {
        /// Whether the delivery was closed by it.
        closed: bool,
    },
    /// The delivery, or the need for this result, is gone. Nothing was written.
    Dropped,
}

/// Writes a batch of results and answers what became of each, in the batch's order. Each delivery is guarded by
/// its state and claim id; a batch has at most one result of a delivery.
pub fn finish(tx: &mut AnyConnection, now: Timestamp, batch: &[Finished]) -> Result<Vec<Effect>, StoreError> {
    let held = lock(tx, batch)?;
    let is_ours = |result: &Finished| held.get(&result.delivery_id) == Some(&Some(result.claim_id));
    let ours: Vec<&Finished> = batch.iter().filter(|result| is_ours(result)).collect();
    insert_attempts(tx, &ours)?;
    let accepted = accepted_earlier(tx, &ours)?;
    move_deliveries(tx, now, &ours, &accepted)?;
    batch
        .iter()
        .map(|result| match held.get(&result.delivery_id) {
            None => Ok(Effect::Dropped),
            Some(claim) if *claim == Some(result.claim_id) => Ok(Effect::Finished),
            Some(_) => finish_late(tx, now, result),
        })
        .collect()
}

/// Locks the batch's deliveries, in id order so that two batches can't wait for each other, and answers under
/// which claim each is being delivered, if any.
fn lock(
    tx: &mut AnyConnection,
    batch: &[Finished],
) -> Result<HashMap<DeliveryId, Option<ClaimId>>, StoreError> {
    type Row = (Key, Option<Key>);
    let rows: Vec<Row> = match tx {
        AnyConnection::Postgres(pg) => prepared::<(Id, Nullable<Id>), _>(
            "SELECT id, claim_id FROM deliveries WHERE id = ANY (?) ORDER BY id FOR UPDATE",
        )
        .bind::<Array<Id>, _>(column(batch, |result| Key::from(result.delivery_id)))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut rows = Vec::with_capacity(batch.len());
            for result in batch {
                let row: Option<Row> =
                    prepared::<(Id, Nullable<Id>), _>("SELECT id, claim_id FROM deliveries WHERE id = ?")
                        .bind::<Id, _>(Key::from(result.delivery_id))
                        .get_result(sqlite)
                        .optional()?;
                rows.extend(row);
            }
            rows
        }
    };
    Ok(rows.into_iter().map(|(id, claim)| (id.into(), claim.map(ClaimId::from))).collect())
}

fn insert_attempts(tx: &mut AnyConnection, ours: &[&Finished]) -> Result<(), StoreError> {
    match tx {
        AnyConnection::Postgres(pg) => {
            prepared::<(), _>(
                "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                     response_time_ms, failure_reason_code, failure_detail, created_at)
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind::<Array<Id>, _>(column(ours, |r| Key::from(r.record.id)))
            .bind::<Array<Id>, _>(column(ours, |r| Key::from(r.delivery_id)))
            .bind::<Array<Integer>, _>(column(ours, |r| r.record.number))
            .bind::<Array<Nullable<Integer>>, _>(column(ours, |r| r.record.status_code))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| r.record.response_body.as_deref()))
            .bind::<Array<Nullable<BigInt>>, _>(column(ours, |r| r.record.response_time_ms))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| reason(r)))
            .bind::<Array<Nullable<Text>>, _>(column(ours, |r| detail(r)))
            .bind::<Array<Moment>, _>(column(ours, |r| Time::from(r.record.claimed_at)))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for r in ours {
                prepared::<(), _>(
                    "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body,
                         response_time_ms, failure_reason_code, failure_detail, created_at)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind::<Id, _>(Key::from(r.record.id))
                .bind::<Id, _>(Key::from(r.delivery_id))
                .bind::<Integer, _>(r.record.number)
                .bind::<Nullable<Integer>, _>(r.record.status_code)
                .bind::<Nullable<Text>, _>(r.record.response_body.as_deref())
                .bind::<Nullable<BigInt>, _>(r.record.response_time_ms)
                .bind::<Nullable<Text>, _>(reason(r))
                .bind::<Nullable<Text>, _>(detail(r))
                .bind::<Moment, _>(Time::from(r.record.claimed_at))
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

/// Which of the deliveries whose attempt failed have a 2xx on record all the same: that of an earlier attempt, come
/// late, while this one was being made. They have succeeded and need no further attempt.
fn accepted_earlier(tx: &mut AnyConnection, ours: &[&Finished]) -> Result<HashSet<DeliveryId>, StoreError> {
    let failed_again = |r: &&&Finished| r.record.number > 1 && r.settlement != Settlement::Succeeded;
    let failed_again: Vec<Key> = ours.iter().filter(failed_again).map(|r| r.delivery_id.into()).collect();
    if failed_again.is_empty() {
        return Ok(HashSet::new());
    }
    let accepted: Vec<Key> = attempts::table
        .filter(attempts::delivery_id.eq_any(failed_again))
        .filter(attempts::failure_reason_code.is_null())
        .select(attempts::delivery_id)
        .load(tx)?;
    Ok(accepted.into_iter().map(DeliveryId::from).collect())
}

/// A delivery's columns after an attempt.
struct Next<'a> {
    status: &'static str,
    next_attempt_at: Option<Time>,
    completed_at: Option<Time>,
    reason: Option<&'static str>,
    detail: Option<&'a str>,
}

impl Next<'_> {
    fn of(result: &Finished, accepted_earlier: bool, now: Timestamp) -> Next<'_> {
        let completed_at = Some(Time::from(now));
        let failed = Next {
            status: "failed",
            next_attempt_at: None,
            completed_at,
            reason: reason(result),
            detail: detail(result),
        };
        match result.settlement {
            _ if accepted_earlier => Next { status: "succeeded", reason: None, detail: None, ..failed },
            Settlement::Succeeded => Next { status: "succeeded", ..failed },
            Settlement::Failed => failed,
            Settlement::RetryAt(at) => {
                Next { status: "pending", next_attempt_at: Some(at.into()), completed_at: None, ..failed }
            }
        }
    }
}

fn move_deliveries(
    tx: &mut AnyConnection,
    now: Timestamp,
    ours: &[&Finished],
    accepted_earlier: &HashSet<DeliveryId>,
) -> Result<(), StoreError> {
    let moves: Vec<(DeliveryId, Next<'_>)> = ours
        .iter()
        .map(|r| (r.delivery_id, Next::of(r, accepted_earlier.contains(&r.delivery_id), now)))
        .collect();
    let now = Time::from(now);
    match tx {
        AnyConnection::Postgres(pg) => {
            prepared::<(), _>(
                "UPDATE deliveries d SET status_code = r.status, next_attempt_at = r.next_attempt_at,
                     wake_at = r.next_attempt_at, completed_at = r.completed_at, failure_reason_code = r.reason,
                     failure_detail = r.detail, claim_id = NULL, claimed_at = NULL, updated_at = ?
                 FROM unnest(?, ?, ?, ?, ?, ?) AS r (id, status, next_attempt_at, completed_at, reason, detail)
                 WHERE d.id = r.id",
            )
            .bind::<Moment, _>(now)
            .bind::<Array<Id>, _>(column(&moves, |(id, _)| Key::from(*id)))
            .bind::<Array<Text>, _>(column(&moves, |(_, next)| next.status))
            .bind::<Array<Nullable<Moment>>, _>(column(&moves, |(_, next)| next.next_attempt_at))
            .bind::<Array<Nullable<Moment>>, _>(column(&moves, |(_, next)| next.completed_at))
            .bind::<Array<Nullable<Text>>, _>(column(&moves, |(_, next)| next.reason))
            .bind::<Array<Nullable<Text>>, _>(column(&moves, |(_, next)| next.detail))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for (id, next) in moves {
                prepared::<(), _>(
                    "UPDATE deliveries SET status_code = ?, next_attempt_at = ?, wake_at = ?, completed_at = ?,
                         failure_reason_code = ?, failure_detail = ?, claim_id = NULL, claimed_at = NULL,
                         updated_at = ?
                     WHERE id = ?",
                )
                .bind::<Text, _>(next.status)
                .bind::<Nullable<Moment>, _>(next.next_attempt_at)
                .bind::<Nullable<Moment>, _>(next.next_attempt_at)
                .bind::<Nullable<Moment>, _>(next.completed_at)
                .bind::<Nullable<Text>, _>(next.reason)
                .bind::<Nullable<Text>, _>(next.detail)
                .bind::<Moment, _>(now)
                .bind::<Id, _>(Key::from(id))
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

pub(super) fn reason(result: &Finished) -> Option<&'static str> {
    result.record.failure.as_ref().map(|failure| failure.reason.into())
}

pub(super) fn detail(result: &Finished) -> Option<&str> {
    result.record.failure.as_ref().map(|failure| failure.detail.as_str())
}

//! Writes transitions. Apart from claims, these are the only statements that move a delivery out of a state.

use std::collections::{HashMap, HashSet};

use contracts::DeliveryId;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};
use engine::Transition;
use engine::transition::FailureChange;

use crate::columns::{DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::open::{OpenDelivery, WhenLocked, lock_open};
use crate::prepared::{column, prepared};

/// Applies each transition whose delivery is in the transition's source state, and returns the ids of the
/// moved deliveries. Waits for rows locked by another session.
pub(crate) fn write_transitions(
    tx: &mut AnyConnection,
    transitions: &[Transition],
) -> QueryResult<HashSet<DeliveryId>> {
    let ids = transitions.iter().map(|transition| transition.delivery_id);
    let mut locked = lock_open(tx, ids, WhenLocked::Wait)?;
    move_locked(tx, &mut locked, transitions)
}

/// Like [`write_transitions`], for deliveries that are already locked. Removes each of them from `locked`.
pub(super) fn move_locked(
    tx: &mut AnyConnection,
    locked: &mut HashMap<DeliveryId, OpenDelivery>,
    transitions: &[Transition],
) -> QueryResult<HashSet<DeliveryId>> {
    let departing = transitions.iter().filter_map(|transition| {
        let row = locked.remove(&transition.delivery_id)?;
        transition
            .departs_from(row.status(), row.claim_id, row.attempt_count)
            .then(|| Move::of(row, transition))
    });
    let (ending, waiting): (Vec<Move>, Vec<Move>) = departing.partition(|row| row.completed_at.is_some());
    end(tx, &ending)?;
    wait(tx, &waiting)?;
    Ok(ending.iter().chain(&waiting).map(|row| row.open.id.into()).collect())
}

/// A delivery after its transition.
struct Move {
    open: OpenDelivery,
    status: &'static str,
    next_attempt_at: Option<DbTime>,
    completed_at: Option<DbTime>,
    updated_at: DbTime,
}

impl Move {
    fn of(open: OpenDelivery, transition: &Transition) -> Move {
        let (failure_reason_code, failure_detail) = match &transition.failure {
            FailureChange::Keep => (open.failure_reason_code, open.failure_detail),
            FailureChange::Set(None) => (None, None),
            FailureChange::Set(Some(failure)) => {
                (Some(<&str>::from(failure.reason).to_owned()), Some(failure.detail.clone()))
            }
        };
        let attempt_count = open.attempt_count - transition.attempts_returned;
        Move {
            open: OpenDelivery { attempt_count, failure_reason_code, failure_detail, ..open },
            status: transition.status.into(),
            next_attempt_at: transition.next_attempt_at.map(DbTime::from),
            completed_at: transition.completed_at.map(DbTime::from),
            updated_at: transition.updated_at.into(),
        }
    }
}

/// Ends deliveries. An ended delivery no longer changes.
fn end(tx: &mut AnyConnection, rows: &[Move]) -> QueryResult<()> {
    match tx {
        AnyConnection::Postgres(_) if rows.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            let ids = column(rows, |row| row.open.id);
            prepared::<(), _>("DELETE FROM open_deliveries WHERE id = ANY (?)")
                .bind::<Array<Id>, _>(&ids)
                .execute(pg)?;
            prepared::<(), _>(
                "INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code, failure_reason_code,
                     failure_detail, attempt_count, created_at, completed_at)
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind::<Array<Id>, _>(&ids)
            .bind::<Array<Id>, _>(column(rows, |row| row.open.org))
            .bind::<Array<Text>, _>(column(rows, |row| row.open.callback_host.as_str()))
            .bind::<Array<Bool>, _>(column(rows, |row| row.open.is_automatic))
            .bind::<Array<Text>, _>(column(rows, |row| row.status))
            .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.open.failure_reason_code.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.open.failure_detail.as_deref()))
            .bind::<Array<Integer>, _>(column(rows, |row| row.open.attempt_count))
            .bind::<Array<Moment>, _>(column(rows, |row| row.open.created_at))
            .bind::<Array<Nullable<Moment>>, _>(column(rows, |row| row.completed_at))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for row in rows {
                prepared::<(), _>("DELETE FROM open_deliveries WHERE id = ?")
                    .bind::<Id, _>(row.open.id)
                    .execute(sqlite)?;
                prepared::<(), _>(
                    "INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code,
                         failure_reason_code, failure_detail, attempt_count, created_at, completed_at)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind::<Id, _>(row.open.id)
                .bind::<Id, _>(row.open.org)
                .bind::<Text, _>(row.open.callback_host.as_str())
                .bind::<Bool, _>(row.open.is_automatic)
                .bind::<Text, _>(row.status)
                .bind::<Nullable<Text>, _>(row.open.failure_reason_code.as_deref())
                .bind::<Nullable<Text>, _>(row.open.failure_detail.as_deref())
                .bind::<Integer, _>(row.open.attempt_count)
                .bind::<Moment, _>(row.open.created_at)
                .bind::<Nullable<Moment>, _>(row.completed_at)
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

/// Returns deliveries to waiting for their next attempt.
fn wait(tx: &mut AnyConnection, rows: &[Move]) -> QueryResult<()> {
    match tx {
        AnyConnection::Postgres(_) if rows.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            let ids = column(rows, |row| row.open.id);
            // The ids are passed twice so that the rows are found by id only.
            prepared::<(), _>(
                "UPDATE open_deliveries o SET attempt_count = t.attempt_count, next_attempt_at = t.next_attempt_at,
                     wake_at = t.next_attempt_at, failure_reason_code = t.reason, failure_detail = t.detail,
                     claim_id = NULL, claimed_at = NULL, updated_at = t.updated_at
                 FROM unnest(?, ?, ?, ?, ?, ?) AS t (id, attempt_count, next_attempt_at, reason, detail, updated_at)
                 WHERE o.id = t.id AND o.id = ANY (?)",
            )
            .bind::<Array<Id>, _>(&ids)
            .bind::<Array<Integer>, _>(column(rows, |row| row.open.attempt_count))
            .bind::<Array<Nullable<Moment>>, _>(column(rows, |row| row.next_attempt_at))
            .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.open.failure_reason_code.as_deref()))
            .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.open.failure_detail.as_deref()))
            .bind::<Array<Moment>, _>(column(rows, |row| row.updated_at))
            .bind::<Array<Id>, _>(&ids)
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for row in rows {
                prepared::<(), _>(
                    "UPDATE open_deliveries SET attempt_count = ?, next_attempt_at = ?, wake_at = ?,
                         failure_reason_code = ?, failure_detail = ?, claim_id = NULL, claimed_at = NULL, updated_at = ?
                     WHERE id = ?",
                )
                .bind::<Integer, _>(row.open.attempt_count)
                .bind::<Nullable<Moment>, _>(row.next_attempt_at)
                .bind::<Nullable<Moment>, _>(row.next_attempt_at)
                .bind::<Nullable<Text>, _>(row.open.failure_reason_code.as_deref())
                .bind::<Nullable<Text>, _>(row.open.failure_detail.as_deref())
                .bind::<Moment, _>(row.updated_at)
                .bind::<Id, _>(row.open.id)
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

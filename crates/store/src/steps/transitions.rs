//! Writing transitions: the only statement that moves a delivery out of a state, beside the claim's.

use std::collections::HashSet;

use contracts::DeliveryId;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text};
use engine::transition::FailureChange;
use engine::{Failure, Transition};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::prepared::{column, prepared};

/// Moves each delivery that is in the state its transition departs from, and returns which were. Several of them must be
/// locked already, so that two batches can't wait for each other.
pub(crate) fn write_transitions(
    tx: &mut AnyConnection,
    transitions: &[Transition],
) -> QueryResult<HashSet<DeliveryId>> {
    let moved: Vec<Key> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "UPDATE deliveries d SET status_code = t.status, attempt_count = d.attempt_count - t.attempts_returned,
                 next_attempt_at = t.next_attempt_at, wake_at = t.next_attempt_at, completed_at = t.completed_at,
                 failure_reason_code = CASE WHEN t.keeps_failure THEN d.failure_reason_code ELSE t.reason END,
                 failure_detail = CASE WHEN t.keeps_failure THEN d.failure_detail ELSE t.detail END,
                 claim_id = NULL, claimed_at = NULL, updated_at = t.updated_at
             FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS t (id, from_status, from_claim, least_attempts, status,
                 attempts_returned, next_attempt_at, completed_at, keeps_failure, reason, detail, updated_at)
             WHERE d.id = t.id AND d.status_code = t.from_status
               AND (t.from_claim IS NULL OR d.claim_id = t.from_claim) AND d.attempt_count >= t.least_attempts
             RETURNING d.id",
        )
        .bind::<Array<Id>, _>(column(transitions, |t| Key::from(t.delivery_id)))
        .bind::<Array<Text>, _>(column(transitions, |t| <&str>::from(t.from.status)))
        .bind::<Array<Nullable<Id>>, _>(column(transitions, |t| t.from.claim_id.map(Key::from)))
        .bind::<Array<Integer>, _>(column(transitions, |t| t.from.least_attempts))
        .bind::<Array<Text>, _>(column(transitions, |t| <&str>::from(t.status)))
        .bind::<Array<Integer>, _>(column(transitions, |t| t.attempts_returned))
        .bind::<Array<Nullable<Moment>>, _>(column(transitions, |t| t.next_attempt_at.map(Time::from)))
        .bind::<Array<Nullable<Moment>>, _>(column(transitions, |t| t.completed_at.map(Time::from)))
        .bind::<Array<Bool>, _>(column(transitions, keeps_failure))
        .bind::<Array<Nullable<Text>>, _>(column(transitions, reason))
        .bind::<Array<Nullable<Text>>, _>(column(transitions, detail))
        .bind::<Array<Moment>, _>(column(transitions, |t| Time::from(t.updated_at)))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut moved = Vec::with_capacity(transitions.len());
            for t in transitions {
                let claim_id = t.from.claim_id.map(Key::from);
                let next_attempt_at = t.next_attempt_at.map(Time::from);
                let id: Option<Key> = prepared::<Id, _>(
                    "UPDATE deliveries SET status_code = ?, attempt_count = attempt_count - ?, next_attempt_at = ?,
                         wake_at = ?, completed_at = ?,
                         failure_reason_code = iif(?, failure_reason_code, ?),
                         failure_detail = iif(?, failure_detail, ?),
                         claim_id = NULL, claimed_at = NULL, updated_at = ?
                     WHERE id = ? AND status_code = ? AND (? IS NULL OR claim_id = ?) AND attempt_count >= ?
                     RETURNING id",
                )
                .bind::<Text, _>(<&str>::from(t.status))
                .bind::<Integer, _>(t.attempts_returned)
                .bind::<Nullable<Moment>, _>(next_attempt_at)
                .bind::<Nullable<Moment>, _>(next_attempt_at)
                .bind::<Nullable<Moment>, _>(t.completed_at.map(Time::from))
                .bind::<Bool, _>(keeps_failure(t))
                .bind::<Nullable<Text>, _>(reason(t))
                .bind::<Bool, _>(keeps_failure(t))
                .bind::<Nullable<Text>, _>(detail(t))
                .bind::<Moment, _>(Time::from(t.updated_at))
                .bind::<Id, _>(Key::from(t.delivery_id))
                .bind::<Text, _>(<&str>::from(t.from.status))
                .bind::<Nullable<Id>, _>(claim_id)
                .bind::<Nullable<Id>, _>(claim_id)
                .bind::<Integer, _>(t.from.least_attempts)
                .get_result(sqlite)
                .optional()?;
                moved.extend(id);
            }
            moved
        }
    };
    Ok(moved.into_iter().map(DeliveryId::from).collect())
}

fn keeps_failure(transition: &Transition) -> bool {
    transition.failure == FailureChange::Keep
}

fn reason(transition: &Transition) -> Option<&'static str> {
    failure(transition).map(|failure| failure.reason.into())
}

fn detail(transition: &Transition) -> Option<&str> {
    failure(transition).map(|failure| failure.detail.as_str())
}

fn failure(transition: &Transition) -> Option<&Failure> {
    match &transition.failure {
        FailureChange::Keep => None,
        FailureChange::Set(failure) => failure.as_ref(),
    }
}

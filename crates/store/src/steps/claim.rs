//! Claiming: from here an attempt belongs to one dispatcher, until its lease ends. By doorbell; `relay` claims what is due.

use std::time::Duration;

use bytes::Bytes;
use contracts::{AttemptNumber, ClaimId, DeliveryId, Job, SecretId, Timestamp};
use diesel::PgConnection;
use diesel::backend::Backend;
use diesel::pg::{Pg, PgRowByRowLoadingMode};
use diesel::prelude::*;
use diesel::serialize::ToSql;
use diesel::sql_types::{Array, BigInt, Binary, Bool, HasSqlType, Integer, Nullable, Text};
use engine::dispatch::{Claim, ClaimSource};
use engine::protection::{Protection, is_off};
use engine::transition::{self, Claiming};
use engine::{Claimed, HeldAttempt, Look};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::{RowsRefused, StoreError};
use crate::prepared::{Prepared, column, prepared};
use crate::steps::holds::held_beyond;
use crate::steps::relay::{DueClaim, claim_due};

/// What a claim came to. All of it was claimed at one moment, unless it is recovered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimResult {
    /// Attempts that are ours to make.
    pub claimed: Vec<Claimed>,
    /// Whether they are of an earlier try, whose commit turns out to have come through.
    pub is_recovered: bool,
    /// How the relay's look went, if it was one.
    pub look: Option<Look>,
}

/// Makes a claim. From the second try on, which is made when an earlier one's commit may have come through, what carries
/// the claim's id already is ours.
pub fn claim(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim: &Claim,
) -> Result<ClaimResult, RowsRefused> {
    if claim.is_retry {
        let claimed = claimed_under(tx, claim.id)?;
        if !claimed.is_empty() {
            return Ok(ClaimResult { claimed, is_recovered: true, look: None });
        }
    }
    let (claimed, look) = match &claim.source {
        ClaimSource::Doorbells(jobs) => (claim_jobs(tx, now, lease, claim.id, jobs)?, None),
        ClaimSource::Relay(plan) => {
            let DueClaim { claimed, look } = claim_due(tx, now, lease, claim.id, plan)?;
            (claimed, Some(look))
        }
    };
    Ok(ClaimResult { claimed, is_recovered: false, look })
}

/// What every claim sets; [`bind_claiming`] binds it. Claiming is the one way out of a state that is not a `Transition`:
/// the attempt's number depends on the row.
macro_rules! claim_set {
    () => {
        "status_code = ?, attempt_count = attempt_count + 1, next_attempt_at = NULL, claim_id = ?, claimed_at = ?,
             wake_at = ?, updated_at = ?"
    };
}
pub(super) use claim_set;

/// The columns of [`ClaimedSql`], of an attempt that is no probe.
macro_rules! claimed_columns {
    () => {
        "id, org_id, run_id, destination, attempt_count, max_attempts, request_id, claim_id, claimed_at, FALSE,
             callback_url, payload, signing_secret_id"
    };
}
pub(super) use claimed_columns;

/// The columns of [`HeldSql`], of `deliveries d` beside its destination's row `h` for the probe made under the same claim.
macro_rules! held_columns {
    () => {
        "d.id, d.org_id, d.run_id, d.destination, d.attempt_count, d.max_attempts, d.request_id, d.claim_id,
             d.claimed_at, h.destination IS NOT NULL"
    };
}
pub(super) use held_columns;

/// What a claim statement returns.
pub(super) type ClaimedSql = (HeldSql, Text, Binary, Nullable<Id>);
pub(super) type ClaimedRow = (HeldRow, String, Vec<u8>, Option<Key>);
pub(super) type HeldSql = (Id, Id, Id, BigInt, Integer, Integer, Text, Id, Moment, Bool);
pub(super) type HeldRow = (Key, Key, Key, i64, i32, i32, String, Key, Time, bool);

pub(super) fn held(row: HeldRow) -> HeldAttempt {
    let (delivery, org, run, destination, number, max_attempts, request_id, claim, at, is_probe) = row;
    HeldAttempt {
        delivery_id: delivery.into(),
        org_id: org.into(),
        run_id: run.into(),
        destination: destination.into(),
        attempt: number,
        max_attempts,
        request_id,
        claim_id: claim.into(),
        claimed_at: at.into(),
        is_probe,
    }
}

pub(super) fn claimed((attempt, callback_url, payload, secret): ClaimedRow) -> Claimed {
    Claimed {
        held: held(attempt),
        callback_url,
        payload: Bytes::from(payload),
        signing_secret_id: secret.map(SecretId::from),
    }
}

/// Loads what a claim statement returns. libpq would keep all rows in memory until the last is converted; so it hands
/// them over one by one.
pub(super) fn load_claimed(
    statement: Prepared<'_, Pg, ClaimedSql>,
    pg: &mut PgConnection,
) -> QueryResult<Vec<Claimed>> {
    let rows = statement.load_iter::<ClaimedRow, PgRowByRowLoadingMode>(pg)?;
    rows.map(|row| row.map(claimed)).collect()
}

/// Binds what [`claim_set`] sets.
pub(super) fn bind_claiming<'a, Row, DB>(
    statement: Prepared<'a, DB, Row>,
    claiming: &Claiming,
) -> Prepared<'a, DB, Row>
where
    DB: Backend + HasSqlType<Id> + HasSqlType<Moment> + HasSqlType<Text>,
    Key: ToSql<Id, DB>,
    Time: ToSql<Moment, DB>,
    &'a str: ToSql<Text, DB>,
{
    statement
        .bind::<Text, _>(<&'static str>::from(claiming.status))
        .bind::<Id, _>(Key::from(claiming.claim_id))
        .bind::<Moment, _>(Time::from(claiming.claimed_at))
        .bind::<Moment, _>(Time::from(claiming.wake_at))
        .bind::<Moment, _>(Time::from(claiming.claimed_at))
}

/// A statement that claims the attempts of jobs, with the condition on the attempt's number.
macro_rules! claim_jobs_on_postgres {
    ($number:literal) => {
        concat!(
            "UPDATE deliveries SET ",
            claim_set!(),
            " WHERE id = ANY (ARRAY (
                 SELECT d.id FROM unnest(?, ?, ?) AS job (id, attempt, destination)
                 JOIN deliveries d ON d.id = job.id AND d.destination = job.destination AND ",
            $number,
            " WHERE d.status_code = 'pending' AND d.attempt_count < d.max_attempts
                   AND (d.next_attempt_at = d.created_at OR d.next_attempt_at <= ?)
                   AND NOT EXISTS (
                       SELECT 1 FROM destinations h WHERE h.destination = d.destination AND h.held_until > ?)
                 ORDER BY d.id FOR UPDATE OF d SKIP LOCKED))
             RETURNING ",
            claimed_columns!()
        )
    };
}

macro_rules! claim_job_on_sqlite {
    ($number:literal) => {
        concat!(
            "UPDATE deliveries SET ",
            claim_set!(),
            " WHERE id = ? AND destination = ? AND ",
            $number,
            " AND status_code = 'pending' AND attempt_count < max_attempts
                  AND (next_attempt_at = created_at OR next_attempt_at <= ?)
                  AND NOT EXISTS (
                      SELECT 1 FROM destinations h
                      WHERE h.destination = deliveries.destination AND h.held_until > ?)
              RETURNING ",
            claimed_columns!()
        )
    };
}

/// Claims the attempts that `jobs` ask for. A job for attempt n claims only a delivery that waits for exactly that
/// attempt, goes where the job says and has the budget for it. It must be due, which a new one is whatever the clocks
/// say, and its destination be ordinary: others are the relay's. Other jobs are duplicates or stale, and claim nothing.
/// `claim_id` must be fresh.
pub fn claim_jobs(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim_id: ClaimId,
    jobs: &[Job],
) -> Result<Vec<Claimed>, StoreError> {
    let claiming = transition::claimed(claim_id, now, lease);
    let due_by = if is_off(Protection::DueTime) { Time::MAX } else { now.into() };
    let held_beyond = held_beyond(now);
    Ok(match tx {
        AnyConnection::Postgres(pg) => {
            // In id order, as every batch locks its rows, so that two of them can't wait for each other.
            let mut jobs: Vec<(DeliveryId, AttemptNumber, i64)> =
                jobs.iter().map(|job| (job.delivery_id, job.attempt, job.destination.as_i64())).collect();
            jobs.sort_unstable();
            let text = match is_off(Protection::AttemptNumber) {
                false => claim_jobs_on_postgres!("d.attempt_count = job.attempt - 1"),
                true => claim_jobs_on_postgres!("job.attempt IS NOT NULL"),
            };
            let statement = bind_claiming(prepared(text), &claiming)
                .bind::<Array<Id>, _>(column(&jobs, |(id, ..)| Key::from(*id)))
                .bind::<Array<Integer>, _>(column(&jobs, |(_, attempt, _)| *attempt))
                .bind::<Array<BigInt>, _>(column(&jobs, |(.., destination)| *destination))
                .bind::<Moment, _>(due_by)
                .bind::<Moment, _>(held_beyond);
            load_claimed(statement, pg)?
        }
        AnyConnection::Sqlite(sqlite) => {
            let text = match is_off(Protection::AttemptNumber) {
                false => claim_job_on_sqlite!("attempt_count = ?"),
                true => claim_job_on_sqlite!("? IS NOT NULL"),
            };
            let mut rows = Vec::with_capacity(jobs.len());
            for job in jobs {
                let row: Option<ClaimedRow> = bind_claiming(prepared::<ClaimedSql, _>(text), &claiming)
                    .bind::<Id, _>(Key::from(job.delivery_id))
                    .bind::<BigInt, _>(job.destination.as_i64())
                    .bind::<Integer, _>(job.attempt - 1)
                    .bind::<Moment, _>(due_by)
                    .bind::<Moment, _>(held_beyond)
                    .get_result(sqlite)
                    .optional()?;
                rows.extend(row.map(claimed));
            }
            rows
        }
    })
}

/// The attempts held under a claim id: after a claim whose commit had an unknown outcome, these are ours.
pub fn claimed_under(tx: &mut AnyConnection, claim_id: ClaimId) -> Result<Vec<Claimed>, StoreError> {
    // claim_id has no index of its own; that of the leases keeps this to what is under way.
    let text = concat!(
        "SELECT ",
        held_columns!(),
        ", d.callback_url, d.payload, d.signing_secret_id FROM deliveries d
         LEFT JOIN destinations h ON h.destination = d.destination AND h.probe_claim_id = d.claim_id
         WHERE d.claim_id IS NOT NULL AND d.claim_id = ?"
    );
    let claim_id = Key::from(claim_id);
    Ok(match tx {
        AnyConnection::Postgres(pg) => load_claimed(prepared(text).bind::<Id, _>(claim_id), pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let rows = prepared::<ClaimedSql, _>(text).bind::<Id, _>(claim_id).load(sqlite)?;
            rows.into_iter().map(claimed).collect()
        }
    })
}

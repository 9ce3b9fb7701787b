//! Claiming: from here an attempt belongs to one dispatcher, until its lease ends. By doorbell; `relay` claims what is due.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use contracts::{ClaimId, Job, SecretId, Timestamp};
use diesel::backend::Backend;
use diesel::pg::PgRowByRowLoadingMode;
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
        "attempt_count = attempt_count + 1, next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?"
    };
}
pub(super) use claim_set;

/// The columns of [`HeldSql`] that an open delivery has, of an attempt that is no probe.
macro_rules! claimed_columns {
    () => {
        "id, org_id, run_id, destination, attempt_count, max_attempts, claim_id, claimed_at, FALSE"
    };
}
pub(super) use claimed_columns;

/// The same of `open_deliveries o` beside its destination's row `h` for the probe made under the same claim.
macro_rules! held_columns {
    () => {
        "o.id, o.org_id, o.run_id, o.destination, o.attempt_count, o.max_attempts, o.claim_id, o.claimed_at,
             h.destination IS NOT NULL"
    };
}
pub(super) use held_columns;

/// An attempt under way, as a statement returns it.
pub(super) type HeldSql = (Id, Id, Id, BigInt, Integer, Integer, Id, Moment, Bool);
pub(super) type HeldRow = (Key, Key, Key, i64, i32, i32, Key, Time, bool);

/// What a send needs from `deliveries`: the id, the request that asked for the delivery, URL, payload and secret.
type FactsSql = (Id, Text, Text, Binary, Nullable<Id>);
type FactsRow = (Key, String, String, Vec<u8>, Option<Key>);

/// Adds what is sent to claimed attempts. An open delivery without its row in `deliveries` is an error.
pub(super) fn with_facts(tx: &mut AnyConnection, rows: Vec<HeldRow>) -> Result<Vec<Claimed>, StoreError> {
    let ids = column(&rows, |(id, ..)| *id);
    let mut facts: HashMap<Key, FactsRow> = HashMap::with_capacity(rows.len());
    match tx {
        AnyConnection::Postgres(_) if ids.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            let statement = prepared::<FactsSql, _>(
                "SELECT id, request_id, callback_url, payload, signing_secret_id FROM deliveries WHERE id = ANY (?)",
            )
            .bind::<Array<Id>, _>(ids);
            // libpq would keep all rows in memory until the last is converted; so it hands them over one by one.
            for row in statement.load_iter::<FactsRow, PgRowByRowLoadingMode>(pg)? {
                let row = row?;
                facts.insert(row.0, row);
            }
        }
        AnyConnection::Sqlite(sqlite) => {
            for id in ids {
                let row: Option<FactsRow> = prepared::<FactsSql, _>(
                    "SELECT id, request_id, callback_url, payload, signing_secret_id FROM deliveries WHERE id = ?",
                )
                .bind::<Id, _>(id)
                .get_result(sqlite)
                .optional()?;
                facts.extend(row.map(|row| (id, row)));
            }
        }
    }
    let claimed = |row: HeldRow| {
        let (_, request_id, callback_url, payload, secret) = facts
            .remove(&row.0)
            .ok_or_else(|| StoreError::corrupt("an open delivery without a payload", &row.0.0))?;
        Ok(Claimed {
            held: held(row, request_id),
            callback_url,
            payload: Bytes::from(payload),
            signing_secret_id: secret.map(SecretId::from),
        })
    };
    rows.into_iter().map(claimed).collect()
}

/// An attempt under way, asked for by that request.
pub(super) fn held(row: HeldRow, request_id: String) -> HeldAttempt {
    let (delivery, org, run, destination, number, max_attempts, claim, at, is_probe) = row;
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

/// Binds what [`claim_set`] sets.
pub(super) fn bind_claiming<'a, Row, DB>(
    statement: Prepared<'a, DB, Row>,
    claiming: &Claiming,
) -> Prepared<'a, DB, Row>
where
    DB: Backend + HasSqlType<Id> + HasSqlType<Moment>,
    Key: ToSql<Id, DB>,
    Time: ToSql<Moment, DB>,
{
    statement
        .bind::<Id, _>(Key::from(claiming.claim_id))
        .bind::<Moment, _>(Time::from(claiming.claimed_at))
        .bind::<Moment, _>(Time::from(claiming.wake_at))
        .bind::<Moment, _>(Time::from(claiming.claimed_at))
}

/// A statement that claims the attempts of jobs, with the condition on the attempt's number. It is given the ids twice, so that
/// the rows are found by them and nothing else. What waits has `next_attempt_at`.
macro_rules! claim_jobs_on_postgres {
    ($number:literal) => {
        concat!(
            "UPDATE open_deliveries SET ",
            claim_set!(),
            " WHERE id = ANY (ARRAY (
                 SELECT o.id FROM open_deliveries o
                 JOIN unnest(?, ?, ?) AS job (id, attempt, destination)
                     ON job.id = o.id AND job.destination = o.destination AND ",
            $number,
            " WHERE o.id = ANY (?) AND o.attempt_count < o.max_attempts
                   AND (o.next_attempt_at = o.created_at OR o.next_attempt_at <= ?)
                   AND NOT EXISTS (
                       SELECT 1 FROM destinations h WHERE h.destination = o.destination AND h.held_until > ?)
                 ORDER BY o.id FOR UPDATE OF o SKIP LOCKED))
             RETURNING ",
            claimed_columns!()
        )
    };
}

macro_rules! claim_job_on_sqlite {
    ($number:literal) => {
        concat!(
            "UPDATE open_deliveries SET ",
            claim_set!(),
            " WHERE id = ? AND destination = ? AND ",
            $number,
            " AND attempt_count < max_attempts AND (next_attempt_at = created_at OR next_attempt_at <= ?)
                  AND NOT EXISTS (
                      SELECT 1 FROM destinations h
                      WHERE h.destination = open_deliveries.destination AND h.held_until > ?)
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
    let rows: Vec<HeldRow> = match tx {
        AnyConnection::Postgres(pg) => {
            let text = match is_off(Protection::AttemptNumber) {
                false => claim_jobs_on_postgres!("o.attempt_count = job.attempt - 1"),
                true => claim_jobs_on_postgres!("job.attempt IS NOT NULL"),
            };
            let ids = column(jobs, |job| Key::from(job.delivery_id));
            bind_claiming(prepared::<HeldSql, _>(text), &claiming)
                .bind::<Array<Id>, _>(ids.clone())
                .bind::<Array<Integer>, _>(column(jobs, |job| job.attempt))
                .bind::<Array<BigInt>, _>(column(jobs, |job| job.destination.as_i64()))
                .bind::<Array<Id>, _>(ids)
                .bind::<Moment, _>(due_by)
                .bind::<Moment, _>(held_beyond)
                .load(pg)?
        }
        AnyConnection::Sqlite(sqlite) => {
            let text = match is_off(Protection::AttemptNumber) {
                false => claim_job_on_sqlite!("attempt_count = ?"),
                true => claim_job_on_sqlite!("? IS NOT NULL"),
            };
            let mut rows = Vec::with_capacity(jobs.len());
            for job in jobs {
                let row: Option<HeldRow> = bind_claiming(prepared::<HeldSql, _>(text), &claiming)
                    .bind::<Id, _>(Key::from(job.delivery_id))
                    .bind::<BigInt, _>(job.destination.as_i64())
                    .bind::<Integer, _>(job.attempt - 1)
                    .bind::<Moment, _>(due_by)
                    .bind::<Moment, _>(held_beyond)
                    .get_result(sqlite)
                    .optional()?;
                rows.extend(row);
            }
            rows
        }
    };
    with_facts(tx, rows)
}

/// The attempts held under a claim id: after a claim whose commit had an unknown outcome, these are ours.
pub fn claimed_under(tx: &mut AnyConnection, claim_id: ClaimId) -> Result<Vec<Claimed>, StoreError> {
    // claim_id has no index of its own; that of the leases keeps this to what is under way.
    let statement = prepared::<HeldSql, _>(concat!(
        "SELECT ",
        held_columns!(),
        " FROM open_deliveries o
         LEFT JOIN destinations h ON h.destination = o.destination AND h.probe_claim_id = o.claim_id
         WHERE o.claim_id IS NOT NULL AND o.claim_id = ?"
    ));
    let rows: Vec<HeldRow> = statement.bind::<Id, _>(Key::from(claim_id)).load(tx)?;
    with_facts(tx, rows)
}

//! Claims attempts for one dispatcher until their lease ends. This module claims by doorbell; `relay` claims
//! due deliveries.

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

/// The result of a claim. All attempts were claimed at the same time, unless they are recovered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimResult {
    /// Attempts that the dispatcher now holds.
    pub claimed: Vec<Claimed>,
    /// Whether an earlier try claimed them and its commit succeeded after all.
    pub is_recovered: bool,
    /// The outcome of the relay's poll; `None` for doorbells and recovered claims.
    pub look: Option<Look>,
}

/// Executes a claim. A retry first looks for rows that already carry the claim id, because the commit of an
/// earlier try may have succeeded.
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

/// The `SET` list of every claim; [`bind_claiming`] binds it. Claiming is the only state change that is not a
/// `Transition`, because the attempt number depends on the row.
macro_rules! claim_set {
    () => {
        "attempt_count = attempt_count + 1, next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?"
    };
}
pub(super) use claim_set;

/// The columns of [`HeldSql`] from an open delivery, for an attempt that is not a probe.
macro_rules! claimed_columns {
    () => {
        "id, org_id, run_id, destination, attempt_count, max_attempts, claim_id, claimed_at, FALSE"
    };
}
pub(super) use claimed_columns;

/// The columns of [`HeldSql`] from `open_deliveries o`, joined with the `destinations` row `h` whose probe
/// has the same claim id.
macro_rules! held_columns {
    () => {
        "o.id, o.org_id, o.run_id, o.destination, o.attempt_count, o.max_attempts, o.claim_id, o.claimed_at,
             h.destination IS NOT NULL"
    };
}
pub(super) use held_columns;

/// A row of an attempt in flight.
pub(super) type HeldSql = (Id, Id, Id, BigInt, Integer, Integer, Id, Moment, Bool);
pub(super) type HeldRow = (Key, Key, Key, i64, i32, i32, Key, Time, bool);

/// The columns of `deliveries` that a send needs: id, request id, URL, payload and secret.
type FactsSql = (Id, Text, Text, Binary, Nullable<Id>);
type FactsRow = (Key, String, String, Vec<u8>, Option<Key>);

/// Adds the data to send to claimed attempts. Fails if an open delivery has no row in `deliveries`.
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
            // Row by row: otherwise libpq keeps all rows in memory until the last one is converted.
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

/// Converts a row of an attempt in flight. `request_id` is the request that created the delivery.
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

/// Binds the parameters of [`claim_set`].
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

/// Claims the attempts of jobs; `$number` is the condition on the attempt number. The ids are passed twice so
/// that the rows are found by id only. Only waiting deliveries have a `next_attempt_at`.
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

/// Claims the attempts that `jobs` name. A job for attempt n claims a delivery only if it waits for attempt
/// n, has the job's destination, and has attempts left. The delivery must be due; a new one always is,
/// regardless of clock differences. Its destination must not have a row in `destinations`; the relay serves
/// those that do. All other jobs are duplicates or stale and claim nothing. `claim_id` must be new.
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

/// Returns the attempts held under a claim id. After a commit with an unknown outcome, the dispatcher holds
/// exactly these.
pub fn claimed_under(tx: &mut AnyConnection, claim_id: ClaimId) -> Result<Vec<Claimed>, StoreError> {
    // `claim_id` has no index of its own; the lease index limits the scan to attempts in flight.
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

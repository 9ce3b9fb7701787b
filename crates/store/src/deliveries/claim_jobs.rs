//! Claims the attempts that doorbells name.

use std::collections::HashMap;
use std::time::Duration;

use contracts::{ClaimId, DeliveryId, Job, Timestamp, Traceparent};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Integer};
use engine::Claimed;
use engine::protection::{Protection, is_off};
use engine::transition;

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::held::{HeldRow, HeldSql, bind_claiming, claim_set, claimed_columns, with_facts};
use crate::deliveries::holds::held_beyond;
use crate::error::StoreError;
use crate::prepared::{column, prepared};

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
    let due_by = if is_off(Protection::DueTime) { DbTime::MAX } else { now.into() };
    let held_beyond = held_beyond(now);
    let rows: Vec<HeldRow> = match tx {
        AnyConnection::Postgres(pg) => {
            let text = match is_off(Protection::AttemptNumber) {
                false => claim_jobs_on_postgres!("o.attempt_count = job.attempt - 1"),
                true => claim_jobs_on_postgres!("job.attempt IS NOT NULL"),
            };
            let ids = column(jobs, |job| DbId::from(job.delivery_id));
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
                    .bind::<Id, _>(DbId::from(job.delivery_id))
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
    let mut claimed = with_facts(tx, rows)?;
    let traced: HashMap<DeliveryId, Traceparent> =
        jobs.iter().filter_map(|job| Some((job.delivery_id, job.traceparent?))).collect();
    for claimed in claimed.iter_mut().filter(|claimed| claimed.held.attempt == 1) {
        claimed.due_at = Some(claimed.held.created_at); // doorbells are rung for new deliveries
        if let Some(doorbell) = traced.get(&claimed.held.delivery_id) {
            claimed.held.request.traceparent = Some(*doorbell); // the attempt follows its doorbell
        }
    }
    Ok(claimed)
}

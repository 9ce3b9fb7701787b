//! Claiming: from here an attempt belongs to one dispatcher, until its lease ends.

use std::time::Duration;

use contracts::{AttemptNumber, ClaimId, DeliveryId, Job, OrgId, RunId, SecretId, Timestamp};
use diesel::dsl::AssumeNotNull;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::deliveries;

/// An attempt that some dispatcher holds: numbered, leased, under a claim id.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct HeldAttempt {
    pub delivery_id: DeliveryId,
    pub org_id: OrgId,
    pub run_id: RunId,
    pub attempt: AttemptNumber,
    pub max_attempts: AttemptNumber,
    /// The API request that asked for the delivery.
    pub request_id: String,
    pub claim_id: ClaimId,
    pub claimed_at: Timestamp,
}

/// An attempt that is ours to make, and what to send.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Claimed {
    pub held: HeldAttempt,
    pub callback_url: String,
    /// The exact bytes to sign and send.
    pub payload: Vec<u8>,
    pub signing_secret_id: Option<SecretId>,
}

/// What every claim statement returns.
type ClaimedSql = (HeldSql, Text, Binary, Nullable<Id>);
type HeldSql = (Id, Id, Id, Integer, Integer, Text, Id, Moment);
type ClaimedRow = (HeldRow, String, Vec<u8>, Option<Key>);
type HeldRow = (Key, Key, Key, i32, i32, String, Key, Time);

impl HeldAttempt {
    fn from_row((delivery, org, run, attempt, max_attempts, request_id, claim, at): HeldRow) -> HeldAttempt {
        HeldAttempt {
            delivery_id: delivery.into(),
            org_id: org.into(),
            run_id: run.into(),
            attempt,
            max_attempts,
            request_id,
            claim_id: claim.into(),
            claimed_at: at.into(),
        }
    }
}

impl Claimed {
    fn from_row((held, callback_url, payload, secret): ClaimedRow) -> Claimed {
        let signing_secret_id = secret.map(SecretId::from);
        Claimed { held: HeldAttempt::from_row(held), callback_url, payload, signing_secret_id }
    }
}

/// Claims the attempts that `jobs` ask for. A job for attempt n claims only a delivery that waits for exactly that
/// attempt, has the budget for it and, beyond the first, is due; other jobs are duplicates or stale, and claim
/// nothing. `claim_id` must be fresh.
pub fn claim_jobs(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim_id: ClaimId,
    jobs: &[Job],
) -> Result<Vec<Claimed>, StoreError> {
    let (now, lease_end) = (Time::from(now), Time::from(now + lease));
    let claim_id = Key::from(claim_id);
    let rows = match tx {
        AnyConnection::Postgres(pg) => {
            // In id order, as every batch locks its rows, so that two of them can't wait for each other.
            let mut jobs: Vec<(DeliveryId, AttemptNumber)> =
                jobs.iter().map(|job| (job.delivery_id, job.attempt)).collect();
            jobs.sort_unstable();
            prepared::<ClaimedSql, _>(
                "UPDATE deliveries d SET status_code = 'delivering', attempt_count = d.attempt_count + 1,
                     next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = claimed.now
                 FROM (
                     SELECT d.id, ?::timestamptz AS now FROM unnest(?, ?) AS job (id, attempt)
                     JOIN deliveries d ON d.id = job.id AND d.attempt_count = job.attempt - 1
                     WHERE d.status_code = 'pending' AND d.attempt_count < d.max_attempts
                       AND (job.attempt = 1 OR d.next_attempt_at <= ?)
                     ORDER BY d.id FOR UPDATE OF d SKIP LOCKED
                 ) AS claimed
                 WHERE d.id = claimed.id
                 RETURNING d.id, d.org_id, d.run_id, d.attempt_count, d.max_attempts, d.request_id, d.claim_id,
                     d.claimed_at, d.callback_url, d.payload, d.signing_secret_id",
            )
            .bind::<Id, _>(claim_id)
            .bind::<Moment, _>(now)
            .bind::<Moment, _>(lease_end)
            .bind::<Moment, _>(now)
            .bind::<Array<Id>, _>(column(&jobs, |(id, _)| Key::from(*id)))
            .bind::<Array<Integer>, _>(column(&jobs, |(_, attempt)| *attempt))
            .bind::<Moment, _>(now)
            .load::<ClaimedRow>(pg)?
        }
        AnyConnection::Sqlite(sqlite) => {
            let mut rows = Vec::with_capacity(jobs.len());
            for job in jobs {
                let row: Option<ClaimedRow> = prepared::<ClaimedSql, _>(
                    "UPDATE deliveries SET status_code = 'delivering', attempt_count = attempt_count + 1,
                         next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?
                     WHERE id = ? AND attempt_count = ? AND status_code = 'pending'
                       AND attempt_count < max_attempts AND (attempt_count = 0 OR next_attempt_at <= ?)
                     RETURNING id, org_id, run_id, attempt_count, max_attempts, request_id, claim_id, claimed_at,
                         callback_url, payload, signing_secret_id",
                )
                .bind::<Id, _>(claim_id)
                .bind::<Moment, _>(now)
                .bind::<Moment, _>(lease_end)
                .bind::<Moment, _>(now)
                .bind::<Id, _>(Key::from(job.delivery_id))
                .bind::<Integer, _>(job.attempt - 1)
                .bind::<Moment, _>(now)
                .get_result(sqlite)
                .optional()?;
                rows.extend(row);
            }
            rows
        }
    };
    Ok(rows.into_iter().map(Claimed::from_row).collect())
}

/// Claims up to `limit` attempts whose time has come, oldest first: retries, and first attempts that no doorbell
/// served. Rows another dispatcher is claiming right now are passed over.
pub fn claim_due(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim_id: ClaimId,
    limit: usize,
) -> Result<Vec<Claimed>, StoreError> {
    let (now, lease_end) = (Time::from(now), Time::from(now + lease));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // What is open and under no claim is pending, and in the index of what waits. Only PostgreSQL has other writers to
    // pass over.
    let text = match tx {
        AnyConnection::Postgres(_) => {
            "UPDATE deliveries SET status_code = 'delivering', attempt_count = attempt_count + 1,
                 next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?
             WHERE id = ANY (ARRAY (
                 SELECT id FROM deliveries
                 WHERE wake_at <= ? AND claim_id IS NULL AND attempt_count < max_attempts
                 ORDER BY wake_at LIMIT ? FOR UPDATE SKIP LOCKED))
             RETURNING id, org_id, run_id, attempt_count, max_attempts, request_id, claim_id, claimed_at,
                 callback_url, payload, signing_secret_id"
        }
        AnyConnection::Sqlite(_) => {
            "UPDATE deliveries SET status_code = 'delivering', attempt_count = attempt_count + 1,
                 next_attempt_at = NULL, claim_id = ?, claimed_at = ?, wake_at = ?, updated_at = ?
             WHERE id IN (
                 SELECT id FROM deliveries
                 WHERE wake_at <= ? AND claim_id IS NULL AND attempt_count < max_attempts
                 ORDER BY wake_at LIMIT ?)
             RETURNING id, org_id, run_id, attempt_count, max_attempts, request_id, claim_id, claimed_at,
                 callback_url, payload, signing_secret_id"
        }
    };
    let rows = prepared::<ClaimedSql, _>(text)
        .bind::<Id, _>(Key::from(claim_id))
        .bind::<Moment, _>(now)
        .bind::<Moment, _>(lease_end)
        .bind::<Moment, _>(now)
        .bind::<Moment, _>(now)
        .bind::<BigInt, _>(limit)
        .load::<ClaimedRow>(tx)?;
    Ok(rows.into_iter().map(Claimed::from_row).collect())
}

type HeldColumns = (
    deliveries::id,
    deliveries::org_id,
    deliveries::run_id,
    deliveries::attempt_count,
    deliveries::max_attempts,
    deliveries::request_id,
    AssumeNotNull<deliveries::claim_id>,
    AssumeNotNull<deliveries::claimed_at>,
);

/// A held attempt's columns: what is being delivered has a claim, as a CHECK states.
fn held() -> HeldColumns {
    (
        deliveries::id,
        deliveries::org_id,
        deliveries::run_id,
        deliveries::attempt_count,
        deliveries::max_attempts,
        deliveries::request_id,
        deliveries::claim_id.assume_not_null(),
        deliveries::claimed_at.assume_not_null(),
    )
}

/// The attempts held under a claim id: after a claim whose commit had an unknown outcome, these are ours.
pub fn claimed_under(tx: &mut AnyConnection, claim_id: ClaimId) -> Result<Vec<Claimed>, StoreError> {
    // claim_id has no index of its own; that of the leases keeps this to what is under way.
    let rows = deliveries::table
        .filter(deliveries::claim_id.is_not_null())
        .filter(deliveries::claim_id.eq(Key::from(claim_id)))
        .select((held(), deliveries::callback_url, deliveries::payload, deliveries::signing_secret_id))
        .load::<ClaimedRow>(tx)?;
    Ok(rows.into_iter().map(Claimed::from_row).collect())
}

/// Up to `limit` attempts whose lease has ended, oldest first. Nothing is locked: finishing them is fenced by
/// their claim ids.
pub fn expired_leases(
    tx: &mut AnyConnection,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<HeldAttempt>, StoreError> {
    let rows: Vec<HeldRow> = deliveries::table
        .filter(deliveries::wake_at.le(Time::from(now)))
        .filter(deliveries::claim_id.is_not_null())
        .order_by(deliveries::wake_at)
        .limit(i64::try_from(limit).unwrap_or(i64::MAX))
        .select(held())
        .load(tx)?;
    Ok(rows.into_iter().map(HeldAttempt::from_row).collect())
}

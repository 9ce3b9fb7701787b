//! Accepting deliveries, and reading them with their history.

use std::collections::HashMap;
use std::time::Duration;

use contracts::{
    Attempt, AttemptNumber, CallbackPayload, Delivery, DeliveryId, DeliveryStatus, FailureReason, InFlight,
    OrgId, PayloadFormat, Run, RunId, RunStatus, SecretId, Timestamp,
};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};

use crate::columns::{Key, Time};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::runs::find_run;
use crate::schema::{attempts, deliveries};
use crate::secrets::current_secret;

/// How long a new delivery is left to its doorbell before the relay takes it.
const DOORBELL_GRACE: Duration = Duration::from_secs(2);

/// What is fixed on a delivery when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptPolicy {
    /// The most attempts it will have.
    pub max_attempts: AttemptNumber,
    /// How its payload is written.
    pub payload_format: PayloadFormat,
}

/// A delivery that was accepted in this transaction: once it commits, ring for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Its organization.
    pub org_id: OrgId,
    /// As it stands, with no attempts yet.
    pub delivery: Delivery,
}

/// The answer to a request for a redelivery. Only `Accepted` changes anything.
#[derive(Debug, PartialEq)]
pub enum Redelivery {
    /// A new delivery is on its way.
    Accepted(Accepted),
    /// No such run in this organization.
    RunNotFound,
    /// The run has not ended.
    RunNotTerminal(RunStatus),
    /// The run names no URL.
    CallbackUrlMissing,
    /// Another delivery of the run is open.
    InFlight(InFlight),
}

/// Accepts a redelivery: a new delivery with a payload built from the run's current state. The partial unique
/// index is the judge of "in flight" (contract section 3, "Redelivery guards").
pub fn redeliver(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    org: OrgId,
    run: RunId,
    request_id: &str,
) -> Result<Redelivery, StoreError> {
    let Some(run) = find_run(tx, org, run)? else { return Ok(Redelivery::RunNotFound) };
    if !run.status_code.is_terminal() {
        return Ok(Redelivery::RunNotTerminal(run.status_code));
    }
    let Some(delivery) = build(tx, now, policy, &run, IsAutomatic(false))? else {
        return Ok(Redelivery::CallbackUrlMissing);
    };
    loop {
        if insert_unless_in_flight(tx, org, &delivery, request_id)? {
            return Ok(Redelivery::Accepted(Accepted { org_id: org, delivery }));
        }
        if let Some(in_flight) = in_flight(tx, org, run.id)? {
            return Ok(Redelivery::InFlight(in_flight));
        }
        // It ended in between: the way is free.
    }
}

/// Accepts the one automatic delivery of a run that has just become terminal, if it names a URL.
pub(crate) fn accept_automatic(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    run: &Run,
    request_id: &str,
) -> Result<Option<Accepted>, StoreError> {
    let Some(delivery) = build(tx, now, policy, run, IsAutomatic(true))? else { return Ok(None) };
    insert_delivery(tx, run.org_id, &delivery, request_id)?;
    Ok(Some(Accepted { org_id: run.org_id, delivery }))
}

struct IsAutomatic(bool);

/// The delivery that `run` calls for: payload frozen, secret chosen. None when it names no URL.
fn build(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    run: &Run,
    IsAutomatic(is_automatic): IsAutomatic,
) -> Result<Option<Delivery>, StoreError> {
    let Some(callback_url) = run.callback_url.clone() else { return Ok(None) };
    let payload = CallbackPayload::of(run).map_err(|error| StoreError::corrupt("a run", &error))?;
    Ok(Some(Delivery {
        id: DeliveryId::new(now),
        run_id: run.id,
        callback_url,
        payload_bytes: payload.to_text(policy.payload_format),
        signing_secret_id: current_secret(tx, run.org_id)?,
        is_automatic,
        status_code: DeliveryStatus::Pending,
        failure_reason_code: None,
        failure_detail: None,
        attempt_count: 0,
        max_attempts: policy.max_attempts,
        next_attempt_at: Some(now),
        created_at: now,
        updated_at: now,
        completed_at: None,
        attempts: Vec::new(),
    }))
}

fn insert_unless_in_flight(
    tx: &mut AnyConnection,
    org: OrgId,
    delivery: &Delivery,
    request_id: &str,
) -> QueryResult<bool> {
    match tx.transaction(|tx| insert_delivery(tx, org, delivery, request_id)) {
        Ok(()) => Ok(true),
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Inserts a new delivery; a unique violation when another one of its run is open.
pub fn insert_delivery(
    tx: &mut AnyConnection,
    org: OrgId,
    delivery: &Delivery,
    request_id: &str,
) -> QueryResult<()> {
    diesel::insert_into(deliveries::table)
        .values(NewDeliveryRow {
            id: delivery.id.into(),
            org_id: org.into(),
            run_id: delivery.run_id.into(),
            callback_url: &delivery.callback_url,
            payload: delivery.payload_bytes.as_bytes(),
            signing_secret_id: delivery.signing_secret_id.map(Key::from),
            is_automatic: delivery.is_automatic,
            status_code: delivery.status_code.into(),
            attempt_count: 0,
            max_attempts: delivery.max_attempts,
            next_attempt_at: delivery.next_attempt_at.map(Time::from),
            wake_at: (delivery.created_at + DOORBELL_GRACE).into(),
            request_id,
            created_at: delivery.created_at.into(),
            updated_at: delivery.updated_at.into(),
        })
        .execute(tx)
        .map(drop)
}

#[derive(Insertable)]
#[diesel(table_name = deliveries, treat_none_as_default_value = false)]
struct NewDeliveryRow<'a> {
    id: Key,
    org_id: Key,
    run_id: Key,
    callback_url: &'a str,
    payload: &'a [u8],
    signing_secret_id: Option<Key>,
    is_automatic: bool,
    status_code: &'static str,
    attempt_count: i32,
    max_attempts: i32,
    next_attempt_at: Option<Time>,
    wake_at: Time,
    request_id: &'a str,
    created_at: Time,
    updated_at: Time,
}

fn in_flight(tx: &mut AnyConnection, org: OrgId, run: RunId) -> QueryResult<Option<InFlight>> {
    let row: Option<(Key, Option<Time>)> = deliveries::table
        .filter(deliveries::org_id.eq(Key::from(org)))
        .filter(deliveries::run_id.eq(Key::from(run)))
        .filter(deliveries::completed_at.is_null())
        .select((deliveries::id, deliveries::next_attempt_at))
        .first(tx)
        .optional()?;
    Ok(row.map(|(id, next)| InFlight { delivery_id: id.into(), next_attempt_at: next.map(Timestamp::from) }))
}

/// A run's deliveries, newest first, with their attempts; none when the organization has no such run.
pub fn deliveries_of_run(
    tx: &mut AnyConnection,
    org: OrgId,
    run: RunId,
) -> Result<Option<Vec<Delivery>>, StoreError> {
    if find_run(tx, org, run)?.is_none() {
        return Ok(None);
    }
    let rows = deliveries::table
        .filter(deliveries::org_id.eq(Key::from(org)))
        .filter(deliveries::run_id.eq(Key::from(run)))
        .order_by((deliveries::created_at.desc(), deliveries::id.desc()))
        .select(DeliveryRow::as_select())
        .load(tx)?;
    with_attempts(tx, rows).map(Some)
}

/// The organization's delivery of that id, with its attempts.
pub fn find_delivery(
    tx: &mut AnyConnection,
    org: OrgId,
    id: DeliveryId,
) -> Result<Option<Delivery>, StoreError> {
    let rows = deliveries::table
        .find(Key::from(id))
        .filter(deliveries::org_id.eq(Key::from(org)))
        .select(DeliveryRow::as_select())
        .load(tx)?;
    Ok(with_attempts(tx, rows)?.pop())
}

/// How many deliveries the organization has of each status.
pub fn count_deliveries(
    tx: &mut AnyConnection,
    org: OrgId,
) -> Result<HashMap<DeliveryStatus, i64>, StoreError> {
    let rows: Vec<(String, i64)> = deliveries::table
        .filter(deliveries::org_id.eq(Key::from(org)))
        .group_by(deliveries::status_code)
        .select((deliveries::status_code, diesel::dsl::count_star()))
        .load(tx)?;
    let counted = |(status, count): (String, i64)| match status.parse() {
        Ok(status) => Ok((status, count)),
        Err(_) => Err(StoreError::corrupt("a delivery's status_code", &status)),
    };
    rows.into_iter().map(counted).collect()
}

fn with_attempts(tx: &mut AnyConnection, rows: Vec<DeliveryRow>) -> Result<Vec<Delivery>, StoreError> {
    let ids: Vec<Key> = rows.iter().map(|row| row.id).collect();
    let mut delivered: Vec<Delivery> = rows.into_iter().map(Delivery::try_from).collect::<Result<_, _>>()?;
    // A statement has a limited number of binds, and a run may have any number of deliveries.
    for (ids, deliveries) in ids.chunks(500).zip(delivered.chunks_mut(500)) {
        let found = attempts::table
            .filter(attempts::delivery_id.eq_any(ids))
            .order_by((attempts::delivery_id, attempts::attempt_number))
            .select(AttemptRow::as_select())
            .load(tx)?;
        for attempt in found {
            let attempt = Attempt::from(attempt);
            if let Some(delivery) = deliveries.iter_mut().find(|delivery| delivery.id == attempt.delivery_id)
            {
                delivery.attempts.push(attempt);
            }
        }
    }
    Ok(delivered)
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = deliveries, check_for_backend(MultiBackend))]
struct DeliveryRow {
    id: Key,
    run_id: Key,
    callback_url: String,
    payload: Vec<u8>,
    signing_secret_id: Option<Key>,
    is_automatic: bool,
    status_code: String,
    failure_reason_code: Option<String>,
    failure_detail: Option<String>,
    attempt_count: i32,
    max_attempts: i32,
    next_attempt_at: Option<Time>,
    created_at: Time,
    updated_at: Time,
    completed_at: Option<Time>,
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = StoreError;

    fn try_from(row: DeliveryRow) -> Result<Delivery, StoreError> {
        let unknown_status = |_| StoreError::corrupt("a delivery's status_code", &row.status_code);
        let reason = row.failure_reason_code.as_deref().map(str::parse::<FailureReason>).transpose();
        Ok(Delivery {
            id: row.id.into(),
            run_id: row.run_id.into(),
            callback_url: row.callback_url,
            payload_bytes: String::from_utf8(row.payload)
                .map_err(|error| StoreError::corrupt("a payload", &error))?,
            signing_secret_id: row.signing_secret_id.map(SecretId::from),
            is_automatic: row.is_automatic,
            status_code: row.status_code.parse().map_err(unknown_status)?,
            failure_reason_code: reason
                .map_err(|error| StoreError::corrupt("a delivery's failure_reason_code", &error))?,
            failure_detail: row.failure_detail,
            attempt_count: row.attempt_count,
            max_attempts: row.max_attempts,
            next_attempt_at: row.next_attempt_at.map(Timestamp::from),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
            completed_at: row.completed_at.map(Timestamp::from),
            attempts: Vec::new(),
        })
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = attempts, check_for_backend(MultiBackend))]
struct AttemptRow {
    id: Key,
    delivery_id: Key,
    attempt_number: i32,
    status_code: Option<i32>,
    response_body: Option<String>,
    response_time_ms: Option<i64>,
    failure_reason_code: Option<String>,
    failure_detail: Option<String>,
    created_at: Time,
}

impl From<AttemptRow> for Attempt {
    fn from(row: AttemptRow) -> Attempt {
        let reason = row.failure_reason_code.zip(row.failure_detail);
        Attempt {
            id: row.id.into(),
            delivery_id: row.delivery_id.into(),
            attempt_number: row.attempt_number,
            status_code: row.status_code,
            response_body: row.response_body,
            response_time_ms: row.response_time_ms,
            error_message: reason.map(|(reason, detail)| format!("{reason}: {detail}")),
            created_at: row.created_at.into(),
        }
    }
}

//! Accepts deliveries: builds and inserts new deliveries, including the automatic one of a run that ends.

use std::collections::HashSet;

use contracts::{
    AttemptNumber, CallbackPayload, Delivery, DeliveryId, Destination, InFlight, OrgId, PayloadFormat,
    RequestContext, Run, RunId, SecretId, Timestamp,
};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};
use engine::protection::{Protection, is_off};
use engine::transition;

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::holds::wait_for_holds;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::open_deliveries;
use crate::secrets::signing::current_secret;

/// Maximum length of a host in octets, including the root's dot (RFC 1035).
const LONGEST_HOST: usize = 254;

/// Properties that are fixed on a delivery when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptPolicy {
    /// Maximum number of attempts.
    pub max_attempts: AttemptNumber,
    /// Format of the payload.
    pub payload_format: PayloadFormat,
}

/// A delivery that was accepted in this transaction. Ring its doorbell after the commit.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The delivery's organization.
    pub org_id: OrgId,
    /// The new delivery, without attempts.
    pub delivery: Delivery,
    /// Whether a waiting delivery of its run was ended for it, as `superseded`.
    pub superseded: bool,
}

/// Accepts the one automatic delivery of a run that has just become terminal, if the run has a callback URL.
pub(crate) fn accept_automatic(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    run: &Run,
    request: &RequestContext,
) -> Result<Option<Accepted>, StoreError> {
    let secret = current_secret(tx, run.org_id)?;
    let Some(delivery) = new_delivery(now, policy, run, secret, IsAutomatic(true))? else { return Ok(None) };
    insert_delivery(tx, run.org_id, &delivery, request)?;
    Ok(Some(Accepted { org_id: run.org_id, delivery, superseded: false }))
}

pub(crate) struct IsAutomatic(pub(crate) bool);

/// Builds a delivery of `run` with its payload fixed. Returns `None` if the run has no callback URL.
pub(crate) fn new_delivery(
    now: Timestamp,
    policy: &AcceptPolicy,
    run: &Run,
    signing_secret_id: Option<SecretId>,
    IsAutomatic(is_automatic): IsAutomatic,
) -> Result<Option<Delivery>, StoreError> {
    let Some(callback_url) = run.callback_url.clone() else { return Ok(None) };
    let payload = CallbackPayload::of(run).map_err(|error| StoreError::corrupt("a run", &error))?;
    let new = transition::accepted(now);
    Ok(Some(Delivery {
        id: DeliveryId::new(now),
        run_id: run.id,
        callback_url,
        payload_bytes: payload.to_text(policy.payload_format),
        signing_secret_id,
        is_automatic,
        status_code: new.status,
        failure_reason_code: None,
        failure_detail: None,
        attempt_count: 0,
        max_attempts: policy.max_attempts,
        next_attempt_at: Some(new.next_attempt_at),
        created_at: now,
        updated_at: now,
        completed_at: None,
        attempts: Vec::new(),
    }))
}

/// A delivery to insert.
#[derive(Clone, Copy)]
pub(crate) struct NewDelivery<'a> {
    pub(crate) org_id: OrgId,
    /// The API request that created it.
    pub(crate) request: &'a RequestContext,
    pub(crate) delivery: &'a Delivery,
}

/// Inserts the new deliveries, except those whose run has an open one, and returns the inserted ids.
pub(crate) fn insert_unless_in_flight(
    tx: &mut AnyConnection,
    new: &[NewDelivery<'_>],
) -> QueryResult<HashSet<DeliveryId>> {
    let opened = insert_open(tx, new)?;
    let new: Vec<NewDelivery<'_>> =
        new.iter().filter(|new| opened.contains(&new.delivery.id)).copied().collect();
    insert_facts(tx, &new)?;
    Ok(opened)
}

/// Inserts a new delivery. Fails with a unique violation if another delivery of its run is open.
pub fn insert_delivery(
    tx: &mut AnyConnection,
    org_id: OrgId,
    delivery: &Delivery,
    request: &RequestContext,
) -> QueryResult<()> {
    let inserted = insert_unless_in_flight(tx, &[NewDelivery { org_id, request, delivery }])?;
    if inserted.is_empty() {
        let why = Box::new("another delivery of the run is open".to_owned());
        return Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, why));
    }
    Ok(())
}

macro_rules! open_on_sqlite {
    ($unless:literal) => {
        concat!(
            "INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes,
                 max_attempts, attempt_count, next_attempt_at, wake_at, created_at, updated_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?) ",
            $unless,
            " RETURNING id"
        )
    };
}

/// Inserts rows into `open_deliveries` for the deliveries whose run has no open one, and returns the inserted
/// ids.
fn insert_open(tx: &mut AnyConnection, new: &[NewDelivery<'_>]) -> QueryResult<HashSet<DeliveryId>> {
    let state = |new: &NewDelivery<'_>| transition::accepted(new.delivery.created_at);
    let created_at = |new: &NewDelivery<'_>| DbTime::from(new.delivery.created_at);
    let next_attempt_at = |new: &NewDelivery<'_>| DbTime::from(state(new).next_attempt_at);
    let wake_at = |new: &NewDelivery<'_>| DbTime::from(state(new).wake_at);
    let opened: Vec<DbId> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes,
                 max_attempts, next_attempt_at, wake_at, created_at, updated_at, attempt_count)
             SELECT *, 0 FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (org_id, run_id) DO NOTHING
             RETURNING id",
        )
        .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.delivery.id)))
        .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.org_id)))
        .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.delivery.run_id)))
        .bind::<Array<BigInt>, _>(column(new, destination))
        .bind::<Array<Text>, _>(column(new, |new| callback_host(&new.delivery.callback_url)))
        .bind::<Array<Bool>, _>(column(new, |new| new.delivery.is_automatic))
        .bind::<Array<Integer>, _>(column(new, payload_bytes))
        .bind::<Array<Integer>, _>(column(new, |new| new.delivery.max_attempts))
        .bind::<Array<Moment>, _>(column(new, next_attempt_at))
        .bind::<Array<Moment>, _>(column(new, wake_at))
        .bind::<Array<Moment>, _>(column(new, created_at))
        .bind::<Array<Moment>, _>(column(new, created_at))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut opened = Vec::with_capacity(new.len());
            let text = match is_off(Protection::OneOpenDelivery) {
                false => open_on_sqlite!("ON CONFLICT (org_id, run_id) DO NOTHING"),
                true => open_on_sqlite!(""),
            };
            for new in new {
                let id: Option<DbId> = prepared::<Id, _>(text)
                    .bind::<Id, _>(DbId::from(new.delivery.id))
                    .bind::<Id, _>(DbId::from(new.org_id))
                    .bind::<Id, _>(DbId::from(new.delivery.run_id))
                    .bind::<BigInt, _>(destination(new))
                    .bind::<Text, _>(callback_host(&new.delivery.callback_url))
                    .bind::<Bool, _>(new.delivery.is_automatic)
                    .bind::<Integer, _>(payload_bytes(new))
                    .bind::<Integer, _>(new.delivery.max_attempts)
                    .bind::<Moment, _>(next_attempt_at(new))
                    .bind::<Moment, _>(wake_at(new))
                    .bind::<Moment, _>(created_at(new))
                    .bind::<Moment, _>(created_at(new))
                    .get_result(sqlite)
                    .optional()?;
                opened.extend(id);
            }
            opened
        }
    };
    Ok(opened.into_iter().map(DeliveryId::from).collect())
}

/// Inserts the immutable facts of deliveries.
fn insert_facts(tx: &mut AnyConnection, new: &[NewDelivery<'_>]) -> QueryResult<()> {
    match tx {
        AnyConnection::Postgres(_) if new.is_empty() => {}
        AnyConnection::Postgres(pg) => {
            prepared::<(), _>(
                "INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, signing_secret_id, is_automatic,
                     max_attempts, request_id, traceparent, created_at)
                 SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.delivery.id)))
            .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.org_id)))
            .bind::<Array<Id>, _>(column(new, |new| DbId::from(new.delivery.run_id)))
            .bind::<Array<Text>, _>(column(new, |new| new.delivery.callback_url.as_str()))
            .bind::<Array<Binary>, _>(column(new, |new| new.delivery.payload_bytes.as_bytes()))
            .bind::<Array<Nullable<Id>>, _>(column(new, |new| new.delivery.signing_secret_id.map(DbId::from)))
            .bind::<Array<Bool>, _>(column(new, |new| new.delivery.is_automatic))
            .bind::<Array<Integer>, _>(column(new, |new| new.delivery.max_attempts))
            .bind::<Array<Text>, _>(column(new, |new| new.request.request_id.as_str()))
            .bind::<Array<Nullable<Text>>, _>(column(new, traceparent))
            .bind::<Array<Moment>, _>(column(new, |new| DbTime::from(new.delivery.created_at)))
            .execute(pg)?;
        }
        AnyConnection::Sqlite(sqlite) => {
            for new in new {
                prepared::<(), _>(
                    "INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, signing_secret_id, is_automatic,
                         max_attempts, request_id, traceparent, created_at)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind::<Id, _>(DbId::from(new.delivery.id))
                .bind::<Id, _>(DbId::from(new.org_id))
                .bind::<Id, _>(DbId::from(new.delivery.run_id))
                .bind::<Text, _>(new.delivery.callback_url.as_str())
                .bind::<Binary, _>(new.delivery.payload_bytes.as_bytes())
                .bind::<Nullable<Id>, _>(new.delivery.signing_secret_id.map(DbId::from))
                .bind::<Bool, _>(new.delivery.is_automatic)
                .bind::<Integer, _>(new.delivery.max_attempts)
                .bind::<Text, _>(new.request.request_id.as_str())
                .bind::<Nullable<Text>, _>(traceparent(new))
                .bind::<Moment, _>(DbTime::from(new.delivery.created_at))
                .execute(sqlite)?;
            }
        }
    }
    Ok(())
}

fn payload_bytes(new: &NewDelivery<'_>) -> i32 {
    i32::try_from(new.delivery.payload_bytes.len()).unwrap_or(i32::MAX)
}

fn traceparent(new: &NewDelivery<'_>) -> Option<String> {
    new.request.traceparent.map(|traceparent| traceparent.to_string())
}

fn destination(new: &NewDelivery<'_>) -> i64 {
    Destination::of(new.org_id, &new.delivery.callback_url).as_i64()
}

/// Returns the lower-case host of a URL without its port. Returns an empty text if there is no host or if it
/// is longer than any valid name, which no index could store; older versions have recorded such URLs.
pub(crate) fn callback_host(url: &str) -> String {
    let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.filter(|host| host.len() <= LONGEST_HOST).unwrap_or_default()
}

pub(crate) fn in_flight(tx: &mut AnyConnection, org: OrgId, run: RunId) -> QueryResult<Option<InFlight>> {
    let mut row: Option<(DbId, i64, Option<DbTime>)> = open_deliveries::table
        .filter(open_deliveries::org_id.eq(DbId::from(org)))
        .filter(open_deliveries::run_id.eq(DbId::from(run)))
        .select((open_deliveries::id, open_deliveries::destination, open_deliveries::next_attempt_at))
        .first(tx)
        .optional()?;
    wait_for_holds(tx, row.iter_mut().map(|(_, destination, next)| (*destination, next)).collect())?;
    Ok(row
        .map(|(id, _, next)| InFlight { delivery_id: id.into(), next_attempt_at: next.map(Timestamp::from) }))
}

//! Accepting deliveries: what is fixed on a new one, the automatic one of a run that ends, and the two ways to insert.

use std::collections::HashSet;

use contracts::{
    AttemptNumber, CallbackPayload, Delivery, DeliveryId, Destination, InFlight, OrgId, PayloadFormat, Run,
    RunId, SecretId, Timestamp,
};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Text};
use engine::protection::{Protection, is_off};
use engine::transition;

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::redeliver::RedeliveryRequest;
use crate::schema::deliveries;
use crate::secrets::current_secret;
use crate::steps::holds::wait_for_holds;

/// In octets, the root's dot included (RFC 1035).
const LONGEST_HOST: usize = 254;

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

/// Accepts the one automatic delivery of a run that has just become terminal, if it names a URL.
pub(crate) fn accept_automatic(
    tx: &mut AnyConnection,
    now: Timestamp,
    policy: &AcceptPolicy,
    run: &Run,
    request_id: &str,
) -> Result<Option<Accepted>, StoreError> {
    let secret = current_secret(tx, run.org_id)?;
    let Some(delivery) = build(now, policy, run, secret, IsAutomatic(true))? else { return Ok(None) };
    insert_delivery(tx, run.org_id, &delivery, request_id)?;
    Ok(Some(Accepted { org_id: run.org_id, delivery }))
}

pub(crate) struct IsAutomatic(pub(crate) bool);

/// The delivery that `run` calls for, its payload frozen. None when it names no URL.
pub(crate) fn build(
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

macro_rules! insert_on_sqlite {
    ($unless:literal) => {
        concat!(
            "INSERT INTO deliveries (id, org_id, run_id, callback_url, callback_host, destination, payload,
                 signing_secret_id, request_id, is_automatic, attempt_count, status_code, max_attempts,
                 next_attempt_at, wake_at, created_at, updated_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, FALSE, 0, ?, ?, ?, ?, ?, ?) ",
            $unless,
            " RETURNING id"
        )
    };
}

/// Inserts the new deliveries but those whose run has an open one, and answers which were inserted.
pub(crate) fn insert_unless_in_flight(
    tx: &mut AnyConnection,
    rows: &[(&RedeliveryRequest, &Delivery)],
) -> QueryResult<HashSet<DeliveryId>> {
    let Some((_, Delivery { max_attempts, created_at, .. })) = rows.first() else {
        return Ok(HashSet::new());
    };
    let (now, new) = (Time::from(*created_at), transition::accepted(*created_at));
    let (status, next_attempt_at, wake_at) =
        (<&str>::from(new.status), Time::from(new.next_attempt_at), Time::from(new.wake_at));
    let inserted: Vec<Key> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "INSERT INTO deliveries (id, org_id, run_id, callback_url, callback_host, destination, payload,
                 signing_secret_id, request_id, is_automatic, attempt_count, status_code, max_attempts,
                 next_attempt_at, wake_at, created_at, updated_at)
             SELECT r.*, FALSE, 0, ?, ?, ?, ?, ?, ? FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?) AS r
             ON CONFLICT (org_id, run_id) WHERE completed_at IS NULL DO NOTHING
             RETURNING id",
        )
        .bind::<Text, _>(status)
        .bind::<Integer, _>(*max_attempts)
        .bind::<Moment, _>(next_attempt_at)
        .bind::<Moment, _>(wake_at)
        .bind::<Moment, _>(now)
        .bind::<Moment, _>(now)
        .bind::<Array<Id>, _>(column(rows, |(_, delivery)| Key::from(delivery.id)))
        .bind::<Array<Id>, _>(column(rows, |(request, _)| Key::from(request.org_id)))
        .bind::<Array<Id>, _>(column(rows, |(_, delivery)| Key::from(delivery.run_id)))
        .bind::<Array<Text>, _>(column(rows, |(_, delivery)| delivery.callback_url.as_str()))
        .bind::<Array<Text>, _>(column(rows, |(_, delivery)| host(&delivery.callback_url)))
        .bind::<Array<BigInt>, _>(column(rows, |(request, delivery)| destination(request.org_id, delivery)))
        .bind::<Array<Binary>, _>(column(rows, |(_, delivery)| delivery.payload_bytes.as_bytes()))
        .bind::<Array<Nullable<Id>>, _>(column(rows, |(_, delivery)| {
            delivery.signing_secret_id.map(Key::from)
        }))
        .bind::<Array<Text>, _>(column(rows, |(request, _)| request.request_id.as_str()))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut inserted = Vec::with_capacity(rows.len());
            let text = match is_off(Protection::OneOpenDelivery) {
                false => {
                    insert_on_sqlite!("ON CONFLICT (org_id, run_id) WHERE completed_at IS NULL DO NOTHING")
                }
                true => insert_on_sqlite!(""),
            };
            for (request, delivery) in rows {
                let id: Option<Key> = prepared::<Id, _>(text)
                    .bind::<Id, _>(Key::from(delivery.id))
                    .bind::<Id, _>(Key::from(request.org_id))
                    .bind::<Id, _>(Key::from(delivery.run_id))
                    .bind::<Text, _>(delivery.callback_url.as_str())
                    .bind::<Text, _>(host(&delivery.callback_url))
                    .bind::<BigInt, _>(destination(request.org_id, delivery))
                    .bind::<Binary, _>(delivery.payload_bytes.as_bytes())
                    .bind::<Nullable<Id>, _>(delivery.signing_secret_id.map(Key::from))
                    .bind::<Text, _>(request.request_id.as_str())
                    .bind::<Text, _>(status)
                    .bind::<Integer, _>(*max_attempts)
                    .bind::<Moment, _>(next_attempt_at)
                    .bind::<Moment, _>(wake_at)
                    .bind::<Moment, _>(now)
                    .bind::<Moment, _>(now)
                    .get_result(sqlite)
                    .optional()?;
                inserted.extend(id);
            }
            inserted
        }
    };
    Ok(inserted.into_iter().map(DeliveryId::from).collect())
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
            callback_host: host(&delivery.callback_url),
            destination: destination(org, delivery),
            payload: delivery.payload_bytes.as_bytes(),
            signing_secret_id: delivery.signing_secret_id.map(Key::from),
            is_automatic: delivery.is_automatic,
            status_code: delivery.status_code.into(),
            attempt_count: 0,
            max_attempts: delivery.max_attempts,
            next_attempt_at: delivery.next_attempt_at.map(Time::from),
            wake_at: transition::accepted(delivery.created_at).wake_at.into(),
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
    callback_host: String,
    destination: i64,
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

/// The host of a URL, lower-case and without its port; empty when it has none, or one longer than any name, as older
/// versions have recorded. No index could take that.
pub(crate) fn host(url: &str) -> String {
    let host = url::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.filter(|host| host.len() <= LONGEST_HOST).unwrap_or_default()
}

fn destination(org: OrgId, delivery: &Delivery) -> i64 {
    Destination::of(org, &delivery.callback_url).as_i64()
}

pub(crate) fn in_flight(tx: &mut AnyConnection, org: OrgId, run: RunId) -> QueryResult<Option<InFlight>> {
    let mut row: Option<(Key, i64, Option<Time>)> = deliveries::table
        .filter(deliveries::org_id.eq(Key::from(org)))
        .filter(deliveries::run_id.eq(Key::from(run)))
        .filter(deliveries::completed_at.is_null())
        .select((deliveries::id, deliveries::destination, deliveries::next_attempt_at))
        .first(tx)
        .optional()?;
    wait_for_holds(tx, row.iter_mut().map(|(_, destination, next)| (*destination, next)).collect())?;
    Ok(row
        .map(|(id, _, next)| InFlight { delivery_id: id.into(), next_attempt_at: next.map(Timestamp::from) }))
}

//! Reads deliveries with their attempts.

use std::collections::HashMap;

use contracts::{
    Attempt, Delivery, DeliveryId, DeliveryStatus, FailureReason, OrgId, RunId, SecretId, Timestamp, Timing,
};
use diesel::prelude::*;
use diesel::sql_types::{Binary, Bool};

use crate::columns::{DbId, DbTime};
use crate::connect::{AnyConnection, MultiBackend};
use crate::deliveries::filter::DeliveryFilter;
use crate::deliveries::holds::wait_for_holds;
use crate::error::StoreError;
use crate::page::{PageRequest, Rows, blob_bytes, position, text_bytes};
use crate::runs::read::run_exists;
use crate::schema::{attempts, deliveries, delivery_states, ended_deliveries, open_deliveries};

/// Which costly parts of deliveries to read. Parts that are not read are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryParts {
    /// `payload_bytes`, from which `payload` is derived.
    pub payload: bool,
    /// The attempts.
    pub attempts: bool,
    /// The `timing` of the attempts.
    pub timing: bool,
}

impl DeliveryParts {
    /// Everything.
    pub const ALL: DeliveryParts = DeliveryParts { payload: true, attempts: true, timing: true };
    /// The API's default.
    pub const SHOWN: DeliveryParts = DeliveryParts { timing: false, ..DeliveryParts::ALL };
}

/// Returns a page of a run's deliveries; `None` if the organization has no such run.
pub fn deliveries_of_run(
    tx: &mut AnyConnection,
    org: OrgId,
    run: RunId,
    request: &PageRequest,
    parts: DeliveryParts,
) -> Result<Option<Rows<Delivery>>, StoreError> {
    if !run_exists(tx, org, run)? {
        return Ok(None);
    }
    let of_run = DeliveryFilter { run_id: Some(run), ..DeliveryFilter::default() };
    deliveries_page(tx, org, &of_run, request, parts).map(Some)
}

/// Returns the organization's delivery with this id.
pub fn find_delivery(
    tx: &mut AnyConnection,
    org: OrgId,
    id: DeliveryId,
    parts: DeliveryParts,
) -> Result<Option<Delivery>, StoreError> {
    let rows = delivery_states::table
        .find(DbId::from(id))
        .filter(delivery_states::org_id.eq(DbId::from(org)))
        .select((DeliveryRow::as_select(), payload(parts.payload)))
        .load(tx)?;
    Ok(with_attempts(tx, rows, parts)?.pop())
}

/// Returns a page of the organization's deliveries.
pub fn deliveries_page(
    tx: &mut AnyConnection,
    org: OrgId,
    filter: &DeliveryFilter,
    request: &PageRequest,
    parts: DeliveryParts,
) -> Result<Rows<Delivery>, StoreError> {
    let positions = filter.positions(tx, org, request)?;
    let mut found = request.gather(positions.into_iter().map(position).collect());
    found.cut(request, &bytes_of(tx, &found.ids(), parts)?);
    let rows = delivery_states::table
        .filter(delivery_states::id.eq_any(found.ids()))
        .select((DeliveryRow::as_select(), payload(parts.payload)))
        .load(tx)?;
    let deliveries = with_attempts(tx, rows, parts)?;
    Ok(found.page(request, deliveries, |delivery| delivery.id.0))
}

/// Returns the size in bytes of these parts of a delivery; 0 if there is no such delivery.
pub fn delivery_bytes(
    tx: &mut AnyConnection,
    org: OrgId,
    id: DeliveryId,
    parts: DeliveryParts,
) -> Result<usize, StoreError> {
    let is_there = deliveries::table.find(DbId::from(id)).filter(deliveries::org_id.eq(DbId::from(org)));
    let found: Vec<DbId> = is_there.select(deliveries::id).load(tx)?;
    let bytes = bytes_of(tx, &found, parts)?;
    Ok(bytes.values().next().map_or(0, |bytes| usize::try_from(*bytes).unwrap_or(0)))
}

/// Returns the size in bytes of these parts per delivery: the payload twice, because it is shown in two
/// forms, and the responses.
fn bytes_of(tx: &mut AnyConnection, ids: &[DbId], parts: DeliveryParts) -> QueryResult<HashMap<DbId, i64>> {
    let mut bytes: HashMap<DbId, i64> = HashMap::new();
    if parts.payload {
        let payloads: Vec<(DbId, i32)> = deliveries::table
            .filter(deliveries::id.eq_any(ids))
            .select((deliveries::id, blob_bytes(deliveries::payload)))
            .load(tx)?;
        bytes.extend(payloads.into_iter().map(|(id, payload)| (id, 2 * i64::from(payload))));
    }
    if parts.attempts {
        let responses: Vec<(DbId, Option<i64>)> = attempts::table
            .filter(attempts::delivery_id.eq_any(ids))
            .group_by(attempts::delivery_id)
            .select((attempts::delivery_id, diesel::dsl::sum(text_bytes(attempts::response_body))))
            .load(tx)?;
        for (id, responses) in responses {
            *bytes.entry(id).or_default() += responses.unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// Returns the organization's number of deliveries per status.
pub fn count_deliveries(
    tx: &mut AnyConnection,
    org: OrgId,
) -> Result<HashMap<DeliveryStatus, i64>, StoreError> {
    let open = open_deliveries::table.filter(open_deliveries::org_id.eq(DbId::from(org)));
    let waiting: i64 = open.filter(open_deliveries::claim_id.is_null()).count().get_result(tx)?;
    let claimed: i64 = open.filter(open_deliveries::claim_id.is_not_null()).count().get_result(tx)?;
    let ended: Vec<(String, i64)> = ended_deliveries::table
        .filter(ended_deliveries::org_id.eq(DbId::from(org)))
        .group_by(ended_deliveries::status_code)
        .select((ended_deliveries::status_code, diesel::dsl::count_star()))
        .load(tx)?;
    let status =
        |status: &str| status.parse().map_err(|_| StoreError::corrupt("a delivery's status_code", &status));
    let mut counts =
        HashMap::from([(DeliveryStatus::Pending, waiting), (DeliveryStatus::Delivering, claimed)]);
    for (code, count) in ended {
        counts.insert(status(&code)?, count);
    }
    counts.retain(|_, count| *count > 0);
    Ok(counts)
}

/// The payload column, or an empty value in its place, which spares the database reading the payload.
#[diesel::dsl::auto_type(no_type_alias)]
fn payload(is_wanted: bool) -> _ {
    let is_wanted = is_wanted.into_sql::<Bool>();
    let nothing: diesel::dsl::AsExprOf<Vec<u8>, Binary> = Vec::new().into_sql::<Binary>();
    diesel::dsl::case_when(is_wanted, delivery_states::payload).otherwise(nothing)
}

/// Builds deliveries from rows and payloads. A delivery to a held destination shows the end of the hold as
/// its next attempt.
fn with_attempts(
    tx: &mut AnyConnection,
    mut rows: Vec<(DeliveryRow, Vec<u8>)>,
    parts: DeliveryParts,
) -> Result<Vec<Delivery>, StoreError> {
    let waiting = rows.iter_mut().filter_map(|(row, _)| Some((row.destination?, &mut row.next_attempt_at)));
    wait_for_holds(tx, waiting.collect())?;
    let ids: Vec<DbId> = rows.iter().map(|(row, _)| row.id).collect();
    let mut delivered: Vec<Delivery> =
        rows.into_iter().map(|(row, payload)| row.into_delivery(payload)).collect::<Result<_, _>>()?;
    if !parts.attempts {
        return Ok(delivered);
    }
    // A statement has a limited number of binds, and a run may have any number of deliveries.
    for (ids, deliveries) in ids.chunks(500).zip(delivered.chunks_mut(500)) {
        let found = attempts::table
            .filter(attempts::delivery_id.eq_any(ids))
            .order_by((attempts::delivery_id, attempts::attempt_number))
            .select(AttemptRow::as_select())
            .load(tx)?;
        for attempt in found {
            let attempt = attempt.into_attempt(parts.timing)?;
            if let Some(delivery) = deliveries.iter_mut().find(|delivery| delivery.id == attempt.delivery_id)
            {
                delivery.attempts.push(attempt);
            }
        }
    }
    Ok(delivered)
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = delivery_states, check_for_backend(MultiBackend))]
struct DeliveryRow {
    id: DbId,
    run_id: DbId,
    callback_url: String,
    destination: Option<i64>,
    signing_secret_id: Option<DbId>,
    is_automatic: bool,
    status_code: String,
    failure_reason_code: Option<String>,
    failure_detail: Option<String>,
    attempt_count: i32,
    max_attempts: i32,
    next_attempt_at: Option<DbTime>,
    created_at: DbTime,
    updated_at: DbTime,
    completed_at: Option<DbTime>,
}

impl DeliveryRow {
    fn into_delivery(self, payload: Vec<u8>) -> Result<Delivery, StoreError> {
        let unknown_status = |_| StoreError::corrupt("a delivery's status_code", &self.status_code);
        let reason = self.failure_reason_code.as_deref().map(str::parse::<FailureReason>).transpose();
        Ok(Delivery {
            id: self.id.into(),
            run_id: self.run_id.into(),
            callback_url: self.callback_url,
            payload_bytes: String::from_utf8(payload)
                .map_err(|error| StoreError::corrupt("a payload", &error))?,
            signing_secret_id: self.signing_secret_id.map(SecretId::from),
            is_automatic: self.is_automatic,
            status_code: self.status_code.parse().map_err(unknown_status)?,
            failure_reason_code: reason
                .map_err(|error| StoreError::corrupt("a delivery's failure_reason_code", &error))?,
            failure_detail: self.failure_detail,
            attempt_count: self.attempt_count,
            max_attempts: self.max_attempts,
            next_attempt_at: self.next_attempt_at.map(Timestamp::from),
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
            completed_at: self.completed_at.map(Timestamp::from),
            attempts: Vec::new(),
        })
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = attempts, check_for_backend(MultiBackend))]
struct AttemptRow {
    id: DbId,
    delivery_id: DbId,
    attempt_number: i32,
    status_code: Option<i32>,
    response_body: Option<String>,
    response_time_ms: Option<i64>,
    failure_reason_code: Option<String>,
    failure_detail: Option<String>,
    created_at: DbTime,
    resolve_ms: Option<i32>,
    connect_ms: Option<i32>,
    tls_ms: Option<i32>,
    send_ms: Option<i32>,
    wait_ms: Option<i32>,
    body_ms: Option<i32>,
    remote_address: Option<String>,
    content_type: Option<String>,
    response_headers: Option<String>,
}

impl AttemptRow {
    fn into_attempt(self, has_timing: bool) -> Result<Attempt, StoreError> {
        let headers = self.response_headers.filter(|_| has_timing);
        let headers = headers.map(|text| serde_json::from_str(&text)).transpose();
        let timing = Timing {
            resolve: self.resolve_ms,
            connect: self.connect_ms,
            tls: self.tls_ms,
            send: self.send_ms,
            wait: self.wait_ms,
            body: self.body_ms,
            remote_address: self.remote_address,
            content_type: self.content_type,
            headers: headers.map_err(|error| StoreError::corrupt("an attempt's response_headers", &error))?,
        };
        let reason = self.failure_reason_code.zip(self.failure_detail);
        Ok(Attempt {
            id: self.id.into(),
            delivery_id: self.delivery_id.into(),
            attempt_number: self.attempt_number,
            status_code: self.status_code,
            response_body: self.response_body,
            response_time_ms: self.response_time_ms,
            error_message: reason.map(|(reason, detail)| format!("{reason}: {detail}")),
            created_at: self.created_at.into(),
            timing: has_timing.then_some(timing),
        })
    }
}

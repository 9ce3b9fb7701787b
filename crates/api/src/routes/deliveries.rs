//! Deliveries and their attempts.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use contracts::{Delivery, DeliveryId, DeliveryStatus, ErrorCode, ErrorType, FailureReason, RunId};
use egress::normalize_host;
use serde_json::{Value, json};
use store::{
    DeliveryFilter, DeliveryParts, PageRequest, Withdrawal, deliveries_of_run, deliveries_page,
    delivery_bytes, find_delivery,
};
use strum::VariantArray;

use crate::call::{self, Call, CallResult};
use crate::error::ApiError;
use crate::guards::idempotency::key_reused;
use crate::query::paging::{self, MAX_LIMIT, page_in_time};
use crate::query::params::{Fault, Query, describe};
use crate::query::selection::Selection;

/// `GET /v1/runs/{run_id}/callback`: a run's deliveries, newest first. If the response is full, its `Link`
/// header leads to the older ones.
pub(crate) async fn of_run(call: Call) -> CallResult {
    let run = RunId(call.path_id("run_id")?);
    let selection = selection_of(&call)?;
    let (org, parts) = (call.org, parts_of(&selection));
    let request = paging::bounded(&call, PageRequest { limit: MAX_LIMIT, ..PageRequest::NEWEST }).await?;
    let found = call.api.store.read(move |tx| deliveries_of_run(tx, org, run, &request, parts)).await?;
    let found = paging::roomy(&call, found.ok_or(ErrorCode::RunNotFound)?)?;
    let older = paging::cursor_behind(&found).map(|cursor| {
        let fields = selection.text().map(|fields| format!("&fields={fields}")).unwrap_or_default();
        format!(
            "</v1/callback-deliveries?run_id={run}&limit={}{fields}&pq={cursor}>; rel=\"next\"",
            request.limit
        )
    });
    let deliveries = found.rows.into_iter().map(|(_, delivery)| selection.apply(delivery));
    let mut answer = call::json(StatusCode::OK, &deliveries.collect::<Vec<_>>())?;
    if let Some(older) = older {
        let link = HeaderValue::try_from(older).map_err(|error| ApiError::Page(error.to_string()))?;
        answer.headers_mut().insert(header::LINK, link);
    }
    Ok(answer)
}

/// `GET /v1/callback-deliveries/{id}`
pub(crate) async fn show(call: Call) -> CallResult {
    let id = DeliveryId(call.path_id("id")?);
    let selection = selection_of(&call)?;
    let (org, parts) = (call.org, parts_of(&selection));
    let max_bytes = call.max_bytes();
    let delivery = call.api.store.read(move |tx| {
        store::within(max_bytes, delivery_bytes(tx, org, id, parts)?)?;
        find_delivery(tx, org, id, parts)
    });
    let delivery = delivery.await?;
    call::json(StatusCode::OK, &selection.apply(delivery.ok_or(ErrorCode::CallbackDeliveryNotFound)?))
}

/// `GET /v1/callback-deliveries`: the organization's deliveries, page by page.
pub(crate) async fn list(call: Call) -> CallResult {
    let mut query = call.query()?;
    let request = page_in_time(&mut query);
    let filter = filter_of(&mut query);
    let selection = Selection::of::<Delivery>(&mut query);
    query.finish()?;
    let (org, parts) = (call.org, parts_of(&selection));
    let request = paging::bounded(&call, request).await?;
    let found = call.api.store.read(move |tx| deliveries_page(tx, org, &filter, &request, parts)).await?;
    paging::answer(&call, &request, found, selection)
}

/// `POST /v1/callback-deliveries/{id}/withdraw`: ends a waiting delivery.
pub(crate) async fn withdraw(call: Call) -> CallResult {
    let id = DeliveryId(call.path_id("id")?);
    call.no_query()?;
    let key = call.idempotency_key()?;
    call.no_body()?;
    let (org, max_bytes) = (call.org, call.max_bytes());
    let withdrawn = call.api.store.write(move |tx, now| {
        store::within(max_bytes, delivery_bytes(tx, org, id, DeliveryParts::SHOWN)?)?;
        Ok::<_, store::StoreError>((store::withdraw(tx, now, org, id, key.as_ref())?, now))
    });
    let conflict = |state: &str| ApiError::Conflict(format!("the delivery does not wait: {state}"));
    let (withdrawal, now) = withdrawn.await?;
    Err(match withdrawal {
        Withdrawal::Withdrawn(delivery) => {
            // Otherwise an earlier request ended it.
            if delivery.completed_at == Some(now) {
                call.api.metrics.ended.count(["failed".into(), "withdrawn".into()]);
            }
            return call::json(StatusCode::OK, &delivery);
        }
        Withdrawal::NotWaiting(DeliveryStatus::Delivering) => conflict("it is being sent at this moment"),
        Withdrawal::NotWaiting(ended) => conflict(&format!("it has ended as {ended}")),
        Withdrawal::KeyReused => key_reused(),
        Withdrawal::DeliveryNotFound => ErrorCode::CallbackDeliveryNotFound.into(),
    })
}

/// Parses the query of a call that takes only `fields`.
fn selection_of(call: &Call) -> Result<Selection, ApiError> {
    let mut query = call.query()?;
    let selection = Selection::of::<Delivery>(&mut query);
    query.finish()?;
    Ok(selection)
}

/// Returns the parts that must be read for a selection.
fn parts_of(selection: &Selection) -> DeliveryParts {
    DeliveryParts {
        payload: selection.shows("payload") || selection.shows("payload_bytes"),
        attempts: selection.shows("attempts"),
        timing: selection.shows_hidden("attempts.timing"),
    }
}

fn filter_of(query: &mut Query) -> DeliveryFilter {
    DeliveryFilter {
        status_code: query.word("status_code"),
        run_id: query.uuid("run_id").map(RunId),
        callback_host: query.take("callback_host", parse_host),
        is_automatic: query.bool("is_automatic"),
        failure_reason_code: query.word("failure_reason_code"),
    }
}

/// Parses a host into the normalized form in which hosts are recorded.
fn parse_host(text: &str) -> Result<String, Fault> {
    normalize_host(text).map_err(|error| (ErrorType::HostInvalid, error.to_string()))
}

/// Describes the query parameters of [`list`].
pub(super) fn parameters() -> Vec<Value> {
    let host = json!({"type": "string", "minLength": 1, "pattern": "^[^\\u0000]*$"});
    let mut parameters = vec![
        describe(
            "status_code",
            &json!({"type": "string", "enum": DeliveryStatus::VARIANTS}),
            "Only deliveries with this status.",
        ),
        describe("run_id", &json!({"type": "string", "format": "uuid"}), "Only deliveries of this run."),
        describe(
            "callback_host",
            &host,
            "Only deliveries to this host: a name (Unicode or ASCII) or an address, without a port.",
        ),
        describe(
            "is_automatic",
            &json!({"type": "boolean"}),
            "Only deliveries created by a run's end (true) or by a client (false).",
        ),
        describe(
            "failure_reason_code",
            &json!({"type": "string", "enum": FailureReason::VARIANTS}),
            "Only deliveries whose latest attempt failed for this reason.",
        ),
    ];
    parameters.extend(paging::moment_parameters());
    parameters.extend(paging::parameters::<Delivery>());
    parameters
}

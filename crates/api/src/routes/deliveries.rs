//! Deliveries and their attempts.

use actix_web::http::StatusCode;
use contracts::{Delivery, DeliveryId, DeliveryStatus, ErrorCode, FailureReason, RunId};
use egress::normalize_host;
use serde_json::{Value, json};
use store::{DeliveryFilter, DeliveryParts, Withdrawal, deliveries_of_run, deliveries_page, find_delivery};
use strum::VariantArray;

use crate::call::{self, Answer, Call};
use crate::error::ApiError;
use crate::idempotency::key_reused;
use crate::operation::query;
use crate::paging::{self, page, page_in_time};
use crate::params::{Fault, Query};
use crate::selection::Selection;

/// `GET /v1/runs/{run_id}/callback`: every delivery of a run, newest first.
pub(crate) async fn of_run(call: Call) -> Answer {
    let run = RunId(call.path_id("run_id")?);
    let selection = selection_of(&call)?;
    let (org, parts) = (call.org, parts_of(&selection));
    let found = call.api.store.read(move |tx| deliveries_of_run(tx, org, run, parts)).await?;
    let deliveries = found.ok_or(ErrorCode::RunNotFound)?.into_iter();
    call::json(StatusCode::OK, &deliveries.map(|delivery| selection.apply(delivery)).collect::<Vec<_>>())
}

/// `GET /v1/callback-deliveries/{id}`
pub(crate) async fn show(call: Call) -> Answer {
    let id = DeliveryId(call.path_id("id")?);
    let selection = selection_of(&call)?;
    let (org, parts) = (call.org, parts_of(&selection));
    let delivery = call.api.store.read(move |tx| find_delivery(tx, org, id, parts)).await?;
    call::json(StatusCode::OK, &selection.apply(delivery.ok_or(ErrorCode::CallbackDeliveryNotFound)?))
}

/// `GET /v1/callback-deliveries`: the organization's deliveries, page by page.
pub(crate) async fn list(call: Call) -> Answer {
    let mut query = call.query()?;
    let request = page_in_time(&mut query);
    let filter = filter_of(&mut query);
    let selection = Selection::of::<Delivery>(&mut query);
    query.finish()?;
    let (org, parts) = (call.org, parts_of(&selection));
    let found = call.api.store.read(move |tx| deliveries_page(tx, org, &filter, &request, parts)).await?;
    call::json(StatusCode::OK, &page(&request, found, &selection))
}

/// `POST /v1/callback-deliveries/{id}/withdraw`: ends a delivery that waits.
pub(crate) async fn withdraw(call: Call) -> Answer {
    let id = DeliveryId(call.path_id("id")?);
    call.no_query()?;
    let key = call.idempotency_key()?;
    call.no_body()?;
    let org = call.org;
    let withdrawn = call.api.store.write(move |tx, now| store::withdraw(tx, now, org, id, key.as_ref()));
    let conflict = |state: &str| ApiError::Conflict(format!("the delivery does not wait: {state}"));
    Err(match withdrawn.await? {
        Withdrawal::Withdrawn(delivery) => return call::json(StatusCode::OK, &delivery),
        Withdrawal::NotWaiting(DeliveryStatus::Delivering) => conflict("it is being sent at this moment"),
        Withdrawal::NotWaiting(ended) => conflict(&format!("it has ended as {ended}")),
        Withdrawal::KeyReused => key_reused(),
        Withdrawal::DeliveryNotFound => ErrorCode::CallbackDeliveryNotFound.into(),
    })
}

/// The query of a call that takes nothing but `fields`.
fn selection_of(call: &Call) -> Result<Selection, ApiError> {
    let mut query = call.query()?;
    let selection = Selection::of::<Delivery>(&mut query);
    query.finish()?;
    Ok(selection)
}

/// What must be read to show that.
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

/// A host is recorded in its normalised form.
fn parse_host(text: &str) -> Result<String, Fault> {
    normalize_host(text).map_err(|error| ("host_invalid", error.to_string()))
}

/// What the query of [`list`] may hold.
pub(super) fn parameters() -> Vec<Value> {
    let host = json!({"type": "string", "minLength": 1, "pattern": "^[^\\u0000]*$"});
    let mut parameters = vec![
        query("status_code", &json!({"type": "string", "enum": DeliveryStatus::VARIANTS}), "Only these."),
        query("run_id", &json!({"type": "string", "format": "uuid"}), "Only this run's."),
        query(
            "callback_host",
            &host,
            "Only those to this host: a name, in Unicode or not, or an address, without a port.",
        ),
        query("is_automatic", &json!({"type": "boolean"}), "Whether the run's end called for them."),
        query(
            "failure_reason_code",
            &json!({"type": "string", "enum": FailureReason::VARIANTS}),
            "Only those whose latest attempt failed so.",
        ),
    ];
    parameters.extend(paging::moment_parameters());
    parameters.extend(paging::parameters::<Delivery>());
    parameters
}

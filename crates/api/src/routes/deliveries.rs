//! Deliveries and their attempts.

use actix_web::http::StatusCode;
use contracts::{DeliveryId, DeliveryStatus, ErrorCode, FailureReason, RunId};
use egress::normalize_host;
use serde_json::{Value, json};
use store::{DeliveryFilter, deliveries_of_run, deliveries_page, find_delivery};
use strum::VariantArray;

use crate::call::{self, Answer, Call};
use crate::operation::query;
use crate::paging::{self, page, page_in_time};
use crate::params::{Fault, Query};

/// `GET /v1/runs/{run_id}/callback`: every delivery of a run, newest first.
pub(crate) async fn of_run(call: Call) -> Answer {
    let run = RunId(call.path_id("run_id")?);
    call.no_query()?;
    let org = call.org;
    let deliveries = call.api.store.read(move |tx| deliveries_of_run(tx, org, run)).await?;
    call::json(StatusCode::OK, &deliveries.ok_or(ErrorCode::RunNotFound)?)
}

/// `GET /v1/callback-deliveries/{id}`
pub(crate) async fn show(call: Call) -> Answer {
    let id = DeliveryId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    let delivery = call.api.store.read(move |tx| find_delivery(tx, org, id)).await?;
    call::json(StatusCode::OK, &delivery.ok_or(ErrorCode::CallbackDeliveryNotFound)?)
}

/// `GET /v1/callback-deliveries`: the organization's deliveries, page by page.
pub(crate) async fn list(call: Call) -> Answer {
    let mut query = call.query()?;
    let request = page_in_time(&mut query);
    let filter = filter_of(&mut query);
    query.finish()?;
    let org = call.org;
    let found = call.api.store.read(move |tx| deliveries_page(tx, org, &filter, &request)).await?;
    call::json(StatusCode::OK, &page(&request, found))
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
    parameters.extend(paging::parameters());
    parameters
}

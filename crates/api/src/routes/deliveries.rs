//! Deliveries and their attempts.

use actix_web::http::StatusCode;
use contracts::{DeliveryId, ErrorCode, RunId};
use store::{deliveries_of_run, find_delivery};

use crate::call::{Answer, Call, json};

/// `GET /v1/runs/{run_id}/callback`: every delivery of a run, newest first.
pub(crate) async fn of_run(call: Call) -> Answer {
    let run = RunId(call.path_id("run_id")?);
    call.no_query()?;
    let org = call.org;
    let deliveries = call.api.store.read(move |tx| deliveries_of_run(tx, org, run)).await?;
    json(StatusCode::OK, &deliveries.ok_or(ErrorCode::RunNotFound)?)
}

/// `GET /v1/callback-deliveries/{id}`
pub(crate) async fn show(call: Call) -> Answer {
    let id = DeliveryId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    let delivery = call.api.store.read(move |tx| find_delivery(tx, org, id)).await?;
    json(StatusCode::OK, &delivery.ok_or(ErrorCode::CallbackDeliveryNotFound)?)
}

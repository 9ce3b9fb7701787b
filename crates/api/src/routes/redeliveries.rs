//! Redelivery of a run's callback.

use actix_web::http::StatusCode;
use contracts::{ErrorCode, ErrorType, FieldError, RunId};
use serde_json::{Value, json};
use store::{Redelivery, RedeliveryRequest, StoreError};

use crate::call::{self, Call, CallResult};
use crate::error::ApiError;
use crate::guards::idempotency::key_reused;
use crate::query::params::describe;

/// Describes the query parameters.
pub(crate) fn parameters() -> Vec<Value> {
    let supersede =
        "Whether to end a delivery that waits for its retry, as `superseded`, instead of answering 409.";
    vec![describe("supersede", &json!({"type": "boolean", "default": false}), supersede)]
}

/// `POST /v1/runs/{run_id}/callback-redeliveries`: accepts a new delivery of the run's current state.
pub(crate) async fn create(call: Call) -> CallResult {
    let run = RunId(call.path_id("run_id")?);
    let mut query = call.query()?;
    let supersede = query.flag("supersede");
    query.finish()?;
    let idempotency_key = call.idempotency_key()?;
    call.no_body()?;
    let Call { acceptor, org, context, room, .. } = call;
    let request =
        RedeliveryRequest { org_id: org, run_id: run, request: context, supersede, idempotency_key };
    let refused = |kind, msg: &str| FieldError::new(&["path", "run_id"], kind, msg);
    Err(match acceptor.redeliver(request, room.is_some()).await? {
        Redelivery::Accepted(accepted) => return call::json(StatusCode::CREATED, &accepted.delivery),
        Redelivery::Repeated(delivery) => return call::json(StatusCode::CREATED, &delivery),
        Redelivery::RepeatedButPruned => ApiError::Conflict(
            "the delivery that this idempotency key made was removed as it ended long ago".into(),
        ),
        Redelivery::KeyReused => return Err(key_reused()),
        Redelivery::TooLarge(bytes) => StoreError::TooLarge(bytes).into(),
        Redelivery::RunNotFound => ErrorCode::RunNotFound.into(),
        Redelivery::RunNotTerminal(status) => {
            refused(ErrorType::RunNotTerminal, &format!("the run has not ended, it is {status}")).into()
        }
        Redelivery::CallbackUrlMissing => {
            refused(ErrorType::CallbackUrlMissing, "the run has no callback_url").into()
        }
        Redelivery::InFlight(in_flight) => {
            let conflict = refused(ErrorType::Conflict, "another delivery of the run is still in flight");
            FieldError { in_flight: Some(in_flight), ..conflict }.into()
        }
    })
}

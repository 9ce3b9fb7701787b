//! Runs, as reported by the run engine.

use actix_web::http::StatusCode;
use contracts::{ErrorCode, ErrorType, FieldError, Run, RunId, RunStatus, RunUpdate};
use egress::{Policy, TargetUrl};
use serde_json::{Value, json};
use store::{Deliver, RecordedRun, RunParts, find_run, record_run, run_bytes, runs_page};
use strum::VariantArray;

use crate::call::{self, Call, CallResult};
use crate::doorbell::ring;
use crate::error::ApiError;
use crate::query::paging::{self, page_in_time};
use crate::query::params::describe;
use crate::query::selection::Selection;

/// `GET /v1/runs/{run_id}`
pub(crate) async fn show(call: Call) -> CallResult {
    let run = RunId(call.path_id("run_id")?);
    call.no_query()?;
    let (org, max_bytes) = (call.org, call.max_bytes());
    let run = call.api.store.read(move |tx| {
        store::within(max_bytes, run_bytes(tx, org, run)?)?;
        find_run(tx, org, run)
    });
    let run = run.await?;
    call::json(StatusCode::OK, &run.ok_or(ErrorCode::RunNotFound)?)
}

/// `GET /v1/runs`: the organization's runs, page by page.
pub(crate) async fn list(call: Call) -> CallResult {
    let mut query = call.query()?;
    let request = page_in_time(&mut query);
    let status = query.word("status_code");
    let selection = Selection::of::<Run>(&mut query);
    query.finish()?;
    let parts = RunParts { output: selection.shows("output"), metadata: selection.shows("metadata") };
    let org = call.org;
    let request = paging::bounded(&call, request).await?;
    let found = call.api.store.read(move |tx| runs_page(tx, org, status, &request, parts)).await?;
    paging::answer(&call, &request, found, selection)
}

/// Describes the query parameters of [`list`].
pub(super) fn parameters() -> Vec<Value> {
    let status = json!({"type": "string", "enum": RunStatus::VARIANTS});
    let mut parameters = vec![describe("status_code", &status, "Only runs with this status.")];
    parameters.extend(paging::moment_parameters());
    parameters.extend(paging::parameters::<Run>());
    parameters
}

/// `GET /v1/runs/statuses`: all statuses of a run.
pub(crate) async fn statuses(call: Call) -> CallResult {
    call.no_query()?;
    call::json(StatusCode::OK, &RunStatus::VARIANTS)
}

/// `PUT /v1/runs/{run_id}`: records a run and, if it has ended, accepts its automatic delivery.
pub(crate) async fn record(call: Call) -> CallResult {
    let id = RunId(call.path_id("run_id")?);
    call.no_query()?;
    call.json()?;
    let (body, egress) = (call.body.clone(), call.api.egress.clone());
    let update = call.work(move || parse_run(&body, &egress)).await??;
    let max_bytes = call.max_bytes();
    let Call { api, org, context, .. } = call;
    let (policy, asked_by) = (api.accept, context.clone());
    let recorded = api.store.write(move |tx, now| {
        store::within(max_bytes, run_bytes(tx, org, id)?)?;
        record_run(tx, now, &policy, Deliver::Automatically, (org, id), &update, &asked_by)
    });
    let (status, run, accepted) = match recorded.await? {
        RecordedRun::Created(run, accepted) => (StatusCode::CREATED, run, accepted),
        RecordedRun::Updated(run, accepted) => (StatusCode::OK, run, accepted),
        RecordedRun::StatusConflict(status) => {
            return Err(ApiError::Conflict(format!("the run has ended as {status}, which never changes")));
        }
        RecordedRun::Erased => return Err(ApiError::Conflict("the run's data has been erased".into())),
    };
    if let Some(accepted) = accepted {
        ring(&api.publisher, &api.metrics, &api.tracer, [(&accepted, context)]);
    }
    call::json(status, &run)
}

/// Parses a run reported by the run engine, and checks its `callback_url`: `url_invalid` if it can't be
/// called, `url_blocked` if it may not be. Returns all errors found. The URL is returned in its normalized
/// form, so that the recorded URL is the one used on the wire. The same rules apply to imported runs.
pub fn parse_run(body: &[u8], policy: &Policy) -> Result<RunUpdate, Vec<FieldError>> {
    let mut update = RunUpdate::parse(body)?;
    if let Some(url) = &mut update.callback_url {
        let refuse = |kind, msg| vec![FieldError::new(&["body", "callback_url"], kind, msg)];
        let target =
            TargetUrl::parse_new(url).map_err(|error| refuse(ErrorType::UrlInvalid, error.to_string()))?;
        policy.judge_url(&target).map_err(|error| refuse(ErrorType::UrlBlocked, error.to_string()))?;
        *url = target.url().to_string();
    }
    Ok(update)
}

pub(super) fn update_example() -> Value {
    json!({
        "status_code": "succeeded",
        "output": {"images": ["https://cdn.example.com/1.png"]},
        "duration_ms": 123,
        "callback_url": "https://hooks.example.com/callbacks",
        "metadata": {"order": 17},
    })
}

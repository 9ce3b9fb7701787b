//! The table of calls.

mod deliveries;
mod examples;
mod health;
mod metrics;
mod redeliveries;
pub(crate) mod runs;
mod secrets;

use std::sync::Arc;

use actix_web::http::Method;
use actix_web::web::{self, Data, Payload, ServiceConfig};
use actix_web::{HttpRequest, Route};
use contracts::{
    CallbackSecret, Delivery, ErrorCode, NewSecret, RequestContext, Run, RunStatus, RunUpdate, Scope,
};
use indexmap::IndexMap;
use serde_json::json;

use crate::acceptor::Acceptor;
use crate::call::{Call, CallResult, keep};
use crate::description::operation::Operation;
use crate::error::ApiError;
use crate::guards::auth::{Authenticator, authenticate};
use crate::guards::database_time::DatabaseTime;
use crate::limits::{COPIES, LIGHT};

use crate::context::{Api, MemoryBudgets};
use crate::description::openapi;
use crate::query::selection::Selected;
use crate::query::{paging, selection};
use crate::transport::{body, request_id, trace};

/// Returns every call of contract section 3. The first matching path is used.
pub(crate) fn table() -> Vec<Operation> {
    use ErrorCode::{CallbackDeliveryNotFound, CallbackSecretNotFound, Conflict, RunNotFound};
    use Scope::{CallbackSecretsCreate, CallbackSecretsDelete, CallbackSecretsEdit, CallbackSecretsRead};
    use Scope::{RunsCreate, RunsExecute, RunsRead};
    let (run, delivery, secret) = (examples::run(), examples::delivery(), examples::secret());
    let empty = json!({"type": "object", "additionalProperties": false});
    vec![
        get("/v1/runs", RunsRead, runs::list)
            .named("list_runs", "The organization's runs")
            .query(runs::parameters())
            .response_page::<Run>("a page of runs", &run),
        get("/v1/runs/statuses", RunsRead, runs::statuses)
            .named("list_run_statuses", "Every status a run can have")
            .response_list::<RunStatus>(200, "the statuses", &json!("queued")),
        get("/v1/runs/{run_id}", RunsRead, runs::show)
            .named("get_run", "A run")
            .response::<Run>(200, "the run", &run)
            .errors(&[RunNotFound]),
        call(Method::PUT, "/v1/runs/{run_id}", RunsCreate, runs::record)
            .named("record_run", "Records a run; when it has ended, its callback is delivered")
            .body(true, &RunUpdate::schema(), &runs::update_example())
            .response::<Run>(201, "the run was recorded", &run)
            .response::<Run>(200, "the run was already recorded", &run)
            .errors(&[Conflict]),
        get("/v1/runs/{run_id}/callback", RunsRead, deliveries::of_run)
            .named("list_deliveries_of_run", "A run's deliveries, newest first")
            .query(vec![selection::parameter::<Delivery>()])
            .response_list::<Selected<'_, Delivery>>(200, "the deliveries", &delivery)
            .with_header("Link", "`rel=\"next\"`: the older deliveries, if not all fit into the response.")
            .errors(&[RunNotFound]),
        call(Method::POST, "/v1/runs/{run_id}/callback-redeliveries", RunsExecute, redeliveries::create)
            .named(
                "create_redelivery",
                "Delivers a run's callback again, with a payload of its current state",
            )
            .query(redeliveries::parameters())
            .body(false, &empty, &json!({}))
            .response::<Delivery>(201, "the new delivery", &delivery)
            .errors(&[RunNotFound]),
        get("/v1/callback-deliveries", RunsRead, deliveries::list)
            .named("list_deliveries", "The organization's deliveries")
            .query(deliveries::parameters())
            .response_page::<Delivery>("a page of deliveries", &delivery),
        get("/v1/callback-deliveries/{id}", RunsRead, deliveries::show)
            .named("get_delivery", "A delivery with its attempts")
            .query(vec![selection::parameter::<Delivery>()])
            .response::<Selected<'_, Delivery>>(200, "the delivery", &delivery)
            .errors(&[CallbackDeliveryNotFound]),
        call(Method::POST, "/v1/callback-deliveries/{id}/withdraw", RunsExecute, deliveries::withdraw)
            .named("withdraw_delivery", "Ends a waiting delivery; repeating the call changes nothing")
            .body(false, &empty, &json!({}))
            .response::<Delivery>(200, "the delivery has ended", &examples::withdrawn_delivery())
            .errors(&[CallbackDeliveryNotFound]),
        call(Method::POST, "/v1/callback-secrets", CallbackSecretsCreate, secrets::create)
            .named("create_secret", "Creates a signing secret; no other response contains it")
            .body(false, &secrets::creation_schema(), &json!({"label": "2026"}))
            .response::<NewSecret>(201, "the new secret", &examples::new_secret()),
        get("/v1/callback-secrets", CallbackSecretsRead, secrets::list)
            .named("list_secrets", "The organization's signing secrets, without their secret part")
            .query(paging::parameters::<CallbackSecret>())
            .response_page::<CallbackSecret>("a page of secrets", &secret),
        get("/v1/callback-secrets/{id}", CallbackSecretsRead, secrets::show)
            .named("get_secret", "A signing secret, without its secret part")
            .response::<CallbackSecret>(200, "the secret", &secret)
            .errors(&[CallbackSecretNotFound]),
        call(Method::PATCH, "/v1/callback-secrets/{id}", CallbackSecretsEdit, secrets::update)
            .named(
                "update_secret",
                "Changes the label of a signing secret, or promotes it to the current one",
            )
            .body(true, &secrets::update_schema(), &json!({"is_current": true}))
            .response::<CallbackSecret>(200, "the secret", &secret)
            .errors(&[CallbackSecretNotFound]),
        call(Method::DELETE, "/v1/callback-secrets/{id}", CallbackSecretsDelete, secrets::delete)
            .named("delete_secret", "Disables a signing secret: requests are no longer signed with it")
            .empty_response(204, "the secret is disabled")
            .errors(&[CallbackSecretNotFound]),
        health(),
    ]
}

fn health() -> Operation {
    Operation::new(Method::GET, "/v1/health", None, web::to(health::show))
        .named("get_health", "Whether the process accepts requests")
        .response::<health::Health>(200, "the process accepts requests", &json!({"status": "ok"}))
}

fn get<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Operation
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = CallResult> + 'static,
{
    call(Method::GET, path, scope, handler)
}

fn call<F, Fut>(method: Method, path: &'static str, scope: Scope, handler: F) -> Operation
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = CallResult> + 'static,
{
    Operation::new(method, path, Some(scope), guarded(scope, handler))
}

/// Registers the calls, their description and its page. All other requests get the error envelope.
pub(crate) fn configure(app: &mut ServiceConfig) {
    let described = [
        ("/openapi.json", web::to(openapi::show)),
        ("/docs", web::to(openapi::to_page)),
        ("/docs/{file:.*}", web::to(openapi::page)),
        ready(),
    ];
    register(app, table(), described);
}

/// Registers the health routes only.
pub(crate) fn configure_health(app: &mut ServiceConfig) {
    register(app, vec![health()], [ready()]);
}

/// Registers the metrics only.
pub(crate) fn configure_metrics(app: &mut ServiceConfig) {
    register(
        app,
        Vec::new(),
        [("/metrics", web::to(metrics::show)), ("/scaling", web::to(metrics::scaling))],
    );
}

/// For operators; not part of the contract.
fn ready() -> (&'static str, Route) {
    ("/health/ready", web::to(health::show_ready))
}

fn register<const N: usize>(
    app: &mut ServiceConfig,
    table: Vec<Operation>,
    more: [(&'static str, Route); N],
) {
    let mut paths: IndexMap<&'static str, Vec<(Method, Route)>> = IndexMap::new();
    for Operation { method, path, route, .. } in table {
        paths.entry(path).or_default().push((method, route));
    }
    for (path, route) in more {
        paths.entry(path).or_default().push((Method::GET, route));
    }
    for (path, calls) in paths {
        let allow = calls.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ");
        let refuse = move || std::future::ready(CallResult::Err(ApiError::MethodNotAllowed(allow.clone())));
        let resource = web::resource(path).default_service(web::to(refuse));
        app.service(
            calls
                .into_iter()
                .fold(resource, |resource, (method, route)| resource.route(route.method(method))),
        );
    }
    app.default_service(web::to(|| std::future::ready(CallResult::Err(ErrorCode::NotFound.into()))));
}

/// Wraps a handler in the checks that all calls share. The body is read only after the checks have passed.
fn guarded<F, Fut>(scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = CallResult> + 'static,
{
    web::to(
        move |api: Data<Api>,
              acceptor: Data<Acceptor>,
              authenticator: Data<Authenticator>,
              budgets: Data<MemoryBudgets>,
              request: HttpRequest,
              payload: Payload| async move {
            let mut database = DatabaseTime::new(api.limits.database_time);
            let org = authenticate(&api, &authenticator, &mut database, &request, scope).await?;
            // Begun here, so that only those with a token can cause spans.
            let traceparent = trace::begin(&api.tracer, &request);
            let expected = body::expected(&request, api.max_body);
            let arriving =
                if expected > LIGHT { Some(budgets.arriving.take(org, expected).await?) } else { None };
            let body = body::read(&request, payload, api.max_body, api.limits.body_time).await?;
            let room = if body.len() > LIGHT {
                Some(budgets.working.take(org, COPIES * body.len()).await?)
            } else {
                None
            };
            drop(arriving);
            let context = RequestContext { request_id: request_id::of(&request), traceparent };
            let room = room.map(Arc::new);
            let mut call = Call { api, acceptor, org, context, request, body, room };
            loop {
                let answer = database.within(handler(call.clone())).await;
                if let Some(room) = call.room {
                    return answer.map(|answer| keep(answer, room));
                }
                // A call that lacks memory has done nothing. Waiting for memory does not use up database
                // time.
                let Some(bytes) = answer.as_ref().err().and_then(ApiError::needed_room) else {
                    return answer;
                };
                call.room = Some(Arc::new(budgets.working.take(org, bytes).await?));
            }
        },
    )
}

//! The table of calls.

mod deliveries;
mod examples;
mod health;
mod redeliveries;
pub(crate) mod runs;
mod secrets;

use std::sync::Arc;

use actix_web::http::Method;
use actix_web::web::{self, Data, Payload, ServiceConfig};
use actix_web::{HttpRequest, Route};
use contracts::{CallbackSecret, Delivery, ErrorCode, NewSecret, Run, RunStatus, Scope};
use indexmap::IndexMap;
use serde_json::json;

use crate::acceptor::Acceptor;
use crate::auth::{Gate, authenticate};
use crate::call::{Answer, Call, keep};
use crate::error::ApiError;
use crate::limits::DatabaseTime;
use crate::operation::Operation;
use crate::room::{COPIES, LIGHT};
use crate::selection::Selected;
use crate::{Api, Large, body, openapi, paging, request_id, selection};

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
            .answers_page::<Run>("a page of runs", &run),
        get("/v1/runs/statuses", RunsRead, runs::statuses)
            .named("list_run_statuses", "Every status a run can have")
            .answers_many::<RunStatus>(200, "the statuses", &json!("queued")),
        get("/v1/runs/{run_id}", RunsRead, runs::show)
            .named("get_run", "A run")
            .answers::<Run>(200, "the run", &run)
            .or(&[RunNotFound]),
        call(Method::PUT, "/v1/runs/{run_id}", RunsCreate, runs::record)
            .named("record_run", "Records a run; when it has ended, its callback is delivered")
            .takes(true, &runs::update_schema(), &runs::update_example())
            .answers::<Run>(201, "the run, which is new", &run)
            .answers::<Run>(200, "the run, which was known", &run)
            .or(&[Conflict]),
        get("/v1/runs/{run_id}/callback", RunsRead, deliveries::of_run)
            .named("list_deliveries_of_run", "A run's deliveries, newest first")
            .query(vec![selection::parameter::<Delivery>()])
            .answers_many::<Selected<'_, Delivery>>(200, "the deliveries", &delivery)
            .with_header("Link", "`rel=\"next\"`: where the older ones are that the answer had no room for.")
            .or(&[RunNotFound]),
        call(Method::POST, "/v1/runs/{run_id}/callback-redeliveries", RunsExecute, redeliveries::create)
            .named(
                "create_redelivery",
                "Delivers a run's callback again, with a payload of its present state",
            )
            .query(redeliveries::parameters())
            .takes(false, &empty, &json!({}))
            .answers::<Delivery>(201, "the new delivery", &delivery)
            .or(&[RunNotFound]),
        get("/v1/callback-deliveries", RunsRead, deliveries::list)
            .named("list_deliveries", "The organization's deliveries")
            .query(deliveries::parameters())
            .answers_page::<Delivery>("a page of deliveries", &delivery),
        get("/v1/callback-deliveries/{id}", RunsRead, deliveries::show)
            .named("get_delivery", "A delivery with its attempts")
            .query(vec![selection::parameter::<Delivery>()])
            .answers::<Selected<'_, Delivery>>(200, "the delivery", &delivery)
            .or(&[CallbackDeliveryNotFound]),
        call(Method::POST, "/v1/callback-deliveries/{id}/withdraw", RunsExecute, deliveries::withdraw)
            .named("withdraw_delivery", "Ends a delivery that waits; repeating it changes nothing")
            .takes(false, &empty, &json!({}))
            .answers::<Delivery>(200, "the delivery, which has ended", &examples::withdrawn_delivery())
            .or(&[CallbackDeliveryNotFound]),
        call(Method::POST, "/v1/callback-secrets", CallbackSecretsCreate, secrets::create)
            .named("create_secret", "Makes a signing secret, and shows it this once")
            .takes(false, &secrets::creation_schema(), &json!({"label": "2026"}))
            .answers::<NewSecret>(201, "the new secret", &examples::new_secret()),
        get("/v1/callback-secrets", CallbackSecretsRead, secrets::list)
            .named("list_secrets", "The organization's signing secrets, without their secret part")
            .query(paging::parameters::<CallbackSecret>())
            .answers_page::<CallbackSecret>("a page of secrets", &secret),
        get("/v1/callback-secrets/{id}", CallbackSecretsRead, secrets::show)
            .named("get_secret", "A signing secret, without its secret part")
            .answers::<CallbackSecret>(200, "the secret", &secret)
            .or(&[CallbackSecretNotFound]),
        call(Method::PATCH, "/v1/callback-secrets/{id}", CallbackSecretsEdit, secrets::update)
            .named("update_secret", "Labels a signing secret, or makes it the current one")
            .takes(true, &secrets::update_schema(), &json!({"is_current": true}))
            .answers::<CallbackSecret>(200, "the secret", &secret)
            .or(&[CallbackSecretNotFound]),
        call(Method::DELETE, "/v1/callback-secrets/{id}", CallbackSecretsDelete, secrets::delete)
            .named("delete_secret", "Disables a signing secret: requests are no longer signed with it")
            .answers_nothing(204, "it is disabled")
            .or(&[CallbackSecretNotFound]),
        health(),
    ]
}

fn health() -> Operation {
    Operation::new(Method::GET, "/v1/health", None, web::to(health::show))
        .named("get_health", "Whether the process answers")
        .answers::<health::Health>(200, "it does", &json!({"status": "ok"}))
}

fn get<F, Fut>(path: &'static str, scope: Scope, handler: F) -> Operation
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    call(Method::GET, path, scope, handler)
}

fn call<F, Fut>(method: Method, path: &'static str, scope: Scope, handler: F) -> Operation
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    Operation::new(method, path, Some(scope), needs(scope, handler))
}

/// Registers the calls, their description and its page. All other requests get the error envelope.
pub(crate) fn configure(app: &mut ServiceConfig) {
    let described = [
        ("/openapi.json", web::to(openapi::show)),
        ("/docs", web::to(openapi::to_page)),
        ("/docs/{file:.*}", web::to(openapi::page)),
        ready(),
    ];
    put(app, table(), described);
}

/// Registers the health routes only.
pub(crate) fn configure_health(app: &mut ServiceConfig) {
    put(app, vec![health()], [ready()]);
}

/// For operators; not part of the contract.
fn ready() -> (&'static str, Route) {
    ("/health/ready", web::to(health::show_ready))
}

fn put<const N: usize>(app: &mut ServiceConfig, table: Vec<Operation>, more: [(&'static str, Route); N]) {
    let mut paths: IndexMap<&'static str, Vec<(Method, Route)>> = IndexMap::new();
    for Operation { method, path, route, .. } in table {
        paths.entry(path).or_default().push((method, route));
    }
    for (path, route) in more {
        paths.entry(path).or_default().push((Method::GET, route));
    }
    for (path, calls) in paths {
        let allow = calls.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ");
        let refuse = move || std::future::ready(Answer::Err(ApiError::MethodNotAllowed(allow.clone())));
        let resource = web::resource(path).default_service(web::to(refuse));
        app.service(
            calls
                .into_iter()
                .fold(resource, |resource, (method, route)| resource.route(route.method(method))),
        );
    }
    app.default_service(web::to(|| std::future::ready(Answer::Err(ErrorCode::NotFound.into()))));
}

/// Wraps a handler in the checks that all calls share. The body is read only after the checks have passed.
fn needs<F, Fut>(scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    web::to(
        move |api: Data<Api>,
              acceptor: Data<Acceptor>,
              gate: Data<Gate>,
              large: Data<Large>,
              request: HttpRequest,
              payload: Payload| async move {
            let mut database = DatabaseTime::new(api.limits.database_time);
            let org = authenticate(&api, &gate, &mut database, &request, scope).await?;
            let expected = body::expected(&request, api.max_body);
            let arriving =
                if expected > LIGHT { Some(large.arriving.take(org, expected).await?) } else { None };
            let body = body::read(&request, payload, api.max_body, api.limits.body_time).await?;
            let room = if body.len() > LIGHT {
                Some(large.working.take(org, COPIES * body.len()).await?)
            } else {
                None
            };
            drop(arriving);
            let (request_id, room) = (request_id::of(&request), room.map(Arc::new));
            let mut call = Call { api, acceptor, org, request_id, request, body, room };
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
                call.room = Some(Arc::new(large.working.take(org, bytes).await?));
            }
        },
    )
}

//! The table of calls.

mod deliveries;
mod health;
mod redeliveries;
pub(crate) mod runs;
mod secrets;

use actix_web::http::Method;
use actix_web::web::{self, Data, Payload, ServiceConfig};
use actix_web::{HttpRequest, Route};
use contracts::{ErrorCode, Scope};

use crate::acceptor::Acceptor;
use crate::auth::{Gate, authenticate};
use crate::call::{Answer, Call};
use crate::error::ApiError;
use crate::limits::DatabaseTime;
use crate::{Api, body, request_id};

/// Every call of contract section 3: path, method, scope, handler. The first path that fits is taken.
fn table() -> Vec<(&'static str, Vec<(Method, Route)>)> {
    use Scope::{CallbackSecretsCreate, RunsCreate, RunsExecute, RunsRead};
    const GET: Method = Method::GET;
    const POST: Method = Method::POST;
    const PUT: Method = Method::PUT;
    vec![
        health(),
        (
            "/v1/runs/{run_id}",
            vec![(GET, needs(RunsRead, runs::show)), (PUT, needs(RunsCreate, runs::record))],
        ),
        ("/v1/runs/{run_id}/callback", vec![(GET, needs(RunsRead, deliveries::of_run))]),
        ("/v1/runs/{run_id}/callback-redeliveries", vec![(POST, needs(RunsExecute, redeliveries::create))]),
        ("/v1/callback-deliveries/{id}", vec![(GET, needs(RunsRead, deliveries::show))]),
        ("/v1/callback-secrets", vec![(POST, needs(CallbackSecretsCreate, secrets::create))]),
    ]
}

fn health() -> (&'static str, Vec<(Method, Route)>) {
    ("/v1/health", vec![(Method::GET, web::to(health::show))])
}

/// Puts the table into the application, and the error envelope around it.
pub(crate) fn configure(app: &mut ServiceConfig) {
    put(app, table());
}

/// The same with nothing but the health call.
pub(crate) fn configure_health(app: &mut ServiceConfig) {
    put(app, vec![health()]);
}

fn put(app: &mut ServiceConfig, table: Vec<(&'static str, Vec<(Method, Route)>)>) {
    for (path, calls) in table {
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

/// A handler behind the guards that all calls share. The body is read once they have let the request pass.
fn needs<F, Fut>(scope: Scope, handler: F) -> Route
where
    F: Fn(Call) -> Fut + Copy + 'static,
    Fut: Future<Output = Answer> + 'static,
{
    web::to(
        move |api: Data<Api>,
              acceptor: Data<Acceptor>,
              gate: Data<Gate>,
              request: HttpRequest,
              payload: Payload| async move {
            let mut database = DatabaseTime::new(api.limits.database_time);
            let org = authenticate(&api, &gate, &mut database, &request, scope).await?;
            let body = body::read(&request, payload, api.max_body, api.limits.body_time).await?;
            let request_id = request_id::of(&request);
            database.within(handler(Call { api, acceptor, org, request_id, request, body })).await
        },
    )
}

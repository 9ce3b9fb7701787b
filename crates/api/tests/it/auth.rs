//! Tokens, the organization header, scopes, and their order.

use std::time::Duration;

use contracts::{Scope, Scopes};
use reqwest::Method;
use testkit::{Backend, OnBackend};

use crate::harness::{Reply, TestApi, redeliveries, send};

testkit::on_both_backends!(
    a_request_without_a_valid_token_is_unauthorized,
    the_organization_header_must_name_the_tokens_organization,
    each_call_needs_its_scope,
    checks_apply_in_the_contracts_order,
);

async fn a_request_without_a_valid_token_is_unauthorized(api: TestApi) {
    let unknown = format!("Bearer rf_live_{}", "0".repeat(64));
    let basic = format!("Basic {}", api.token);
    let cut = format!("Bearer {}", &api.token[..71]);
    let request = || api.bare(Method::GET, "/v1/runs/x");
    let with = |value: &str| request().header("authorization", value);
    for refused in
        [request(), with(""), with("Bearer"), with("Bearer "), with(&unknown), with(&basic), with(&cut)]
    {
        let reply = send(refused).await;
        assert_eq!(reply.error(), (401, "UNAUTHORIZED".into()));
        assert_eq!(reply.header("www-authenticate"), "Bearer");
    }
    let lower_case = format!("bearer  {}", api.token);
    assert_eq!(send(with(&lower_case)).await.invalid(), ["path.run_id uuid_parsing"]);
}

async fn the_organization_header_must_name_the_tokens_organization(api: TestApi) {
    let (foreign, _) = api.another_organization().await;
    let get = |org: &str| api.request(Method::GET, "/v1/runs/x").header("X-Organization-Id", org);
    assert_eq!(send(get("acme")).await.invalid(), ["header.x-organization-id uuid_parsing"]);
    let refused = send(get(&foreign.to_string()).header("X-Organization-Id", api.org.to_string())).await;
    assert_eq!(refused.error(), (403, "ORGANIZATION_MEMBERSHIP_REQUIRED".into()));
    let own = send(get(&api.org.to_string().to_uppercase())).await;
    assert_eq!(own.invalid(), ["path.run_id uuid_parsing"]);
}

async fn each_call_needs_its_scope(api: TestApi) {
    use Scope::{CallbackSecretsCreate, RunsCreate, RunsExecute, RunsRead};
    for (method, path, scope) in [
        (Method::GET, "/v1/runs/x", RunsRead),
        (Method::PUT, "/v1/runs/x", RunsCreate),
        (Method::GET, "/v1/runs/x/callback", RunsRead),
        (Method::POST, "/v1/runs/x/callback-redeliveries", RunsExecute),
        (Method::GET, "/v1/callback-deliveries/x", RunsRead),
        (Method::POST, "/v1/callback-secrets?x", CallbackSecretsCreate),
    ] {
        let all_but_it: Vec<Scope> = [RunsRead, RunsCreate, RunsExecute, CallbackSecretsCreate]
            .into_iter()
            .filter(|s| *s != scope)
            .collect();
        let call = async |scopes: Vec<Scope>| {
            let token = api.token(Scopes::Named(scopes)).await;
            send(api.bare(method.clone(), path).bearer_auth(token)).await
        };
        assert_eq!(call(all_but_it).await.error(), (403, "PERMISSION_DENIED".into()), "{method} {path}");
        assert_eq!(call(vec![scope]).await.invalid().len(), 1, "{method} {path}"); // `x` isn't an ID
    }
}

/// A request with several faults is refused for the first one. Once it is fixed, for the next one.
async fn checks_apply_in_the_contracts_order(api: TestApi) {
    let (foreign, own) = (uuid::Uuid::from_u128(1).to_string(), api.org.to_string());
    let weak = api.token(Scopes::Named(vec![])).await;
    let unknown_run = redeliveries(uuid::Uuid::from_u128(2));
    let call = async |token: &str, org: &str, path: &str, body: &'static str| -> Reply {
        let request = api.bare(Method::POST, path).bearer_auth(token).header("x-organization-id", org);
        send(request.header("content-type", "application/json").body(body)).await
    };
    let bad_path = redeliveries("x");
    assert_eq!(call("no-token", &foreign, &bad_path, "[").await.error().1, "UNAUTHORIZED");
    assert_eq!(call(&weak, &foreign, &bad_path, "[").await.error().1, "ORGANIZATION_MEMBERSHIP_REQUIRED");
    assert_eq!(call(&weak, &own, &bad_path, "[").await.error().1, "PERMISSION_DENIED");
    assert_eq!(call(&api.token, &own, &bad_path, "[").await.invalid(), ["path.run_id uuid_parsing"]);
    assert_eq!(call(&api.token, &own, &unknown_run, "[").await.invalid(), ["body.1 json_invalid"]);
    assert_eq!(call(&api.token, &own, &unknown_run, "{}").await.error().1, "RUN_NOT_FOUND");
}

/// Without its database, the server still accepts a token seen within the last five seconds.
#[tokio::test]
async fn a_known_token_is_not_looked_up_again_for_five_seconds() {
    let mut api = TestApi::on(Backend::Postgres).await;
    assert_eq!(api.get("/v1/runs/x").await.status, 422);
    api.lose_database();
    api.clock.advance(Duration::from_millis(4_999));
    assert_eq!(api.get("/v1/runs/x").await.status, 422);
    api.clock.advance(Duration::from_millis(1));
    assert_eq!(api.get("/v1/runs/x").await.status, 503);
}

/// The token is revoked by another process: the cache of this one is up to five seconds old.
#[tokio::test]
async fn a_revoked_token_is_refused_like_an_unknown_one_within_five_seconds() {
    let api = TestApi::on(Backend::Postgres).await;
    assert_eq!(api.get("/v1/runs/x").await.status, 422);
    let org = api.org;
    let revoke = api.store.write(move |tx, now| {
        let tokens = store::list_tokens(tx, org)?;
        store::revoke_token(tx, now, org, tokens[0].id)
    });
    assert!(revoke.await.unwrap().is_some());
    api.clock.advance(Duration::from_secs(5));
    assert_unauthorized(&api, &api.token).await;
}

#[tokio::test]
async fn an_expired_token_is_refused_like_an_unknown_one_at_once() {
    let api = TestApi::on(Backend::Postgres).await;
    let org = api.org;
    let made = api.store.write(move |tx, now| {
        store::create_token(tx, now, org, Scopes::All, None, Some(now + Duration::from_secs(3)))
    });
    let token = made.await.unwrap().token.to_string();
    let get = || api.bare(Method::GET, "/v1/runs/x").bearer_auth(&token);
    assert_eq!(send(get()).await.status, 422);
    api.clock.advance(Duration::from_micros(2_999_999));
    assert_eq!(send(get()).await.status, 422);
    api.clock.advance(Duration::from_micros(1));
    assert_unauthorized(&api, &token).await;
}

/// Checks that the response is the same as for a token that never existed.
async fn assert_unauthorized(api: &TestApi, token: &str) {
    let get = |token: &str| api.bare(Method::GET, "/v1/runs/x").bearer_auth(token);
    let (refused, unknown) =
        (send(get(token)).await, send(get(&format!("rf_live_{}", "0".repeat(64)))).await);
    assert_eq!(refused.error(), (401, "UNAUTHORIZED".into()));
    let told = |reply: &Reply| (reply.text.clone(), reply.headers.keys().cloned().collect::<Vec<_>>());
    assert_eq!(told(&refused), told(&unknown));
}

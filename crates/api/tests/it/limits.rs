//! Rate limits of organizations and clients.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use api::{Limits, Rate};
use reqwest::Method;
use testkit::{Backend, Proxy, TestDatabase};

use crate::harness::{RUN, Reply, TestApi, send};

const SECOND: Duration = Duration::from_secs(1);

/// Generates tests on both engines, with `$limits`, for each async function.
macro_rules! limited {
    ($limits:expr => $($test:ident),* $(,)?) => {$(
        mod $test {
            use super::*;

            #[tokio::test]
            async fn postgres() {
                super::$test(TestApi::limited(Backend::Postgres, $limits).await).await;
            }

            #[tokio::test]
            async fn sqlite() {
                super::$test(TestApi::limited(Backend::Sqlite, $limits).await).await;
            }
        }
    )*};
}

fn rate(count: u32, period: Duration, burst: u32) -> Option<Rate> {
    Some(Rate::new(NonZeroU32::new(count).unwrap(), period, NonZeroU32::new(burst).unwrap()))
}

fn requests() -> Limits {
    Limits { requests: rate(2, SECOND, 3), ..Limits::default() }
}

fn failures() -> Limits {
    Limits { auth_failures: rate(6, 60 * SECOND, 3), ..Limits::default() }
}

limited!(requests() =>
    an_organization_over_its_rate_gets_a_retry_time,
    each_organization_has_its_own_rate,
    authenticated_requests_count_whatever_their_outcome,
    health_and_unknown_paths_are_not_limited,
);

limited!(failures() =>
    a_client_that_guesses_tokens_is_limited_and_valid_tokens_are_not,
    clients_behind_a_trusted_proxy_are_limited_separately,
    peers_are_limited_separately,
    requests_that_cost_no_look_up_do_not_count_as_failures,
    valid_tokens_do_not_count_as_failures,
);

fn assert_limited(reply: &Reply, retry_after: &str) {
    assert_eq!(reply.error(), (429, "RATE_LIMITED".into()));
    assert_eq!(reply.header("retry-after"), retry_after);
    assert_eq!(reply.json()["errors"], serde_json::Value::Null);
}

async fn an_organization_over_its_rate_gets_a_retry_time(api: TestApi) {
    let other = api.token(contracts::Scopes::All).await;
    let run = format!("/v1/runs/{RUN}");
    for _ in 0..2 {
        assert_eq!(api.get(&run).await.status, 404);
    }
    assert_eq!(send(api.bare(Method::GET, &run).bearer_auth(&other)).await.status, 404);
    for token in [&api.token, &other] {
        assert_limited(&send(api.bare(Method::GET, &run).bearer_auth(token)).await, "1");
    }
    api.clock.advance(Duration::from_millis(499));
    assert_limited(&api.get(&run).await, "1");
    api.clock.advance(Duration::from_millis(1));
    assert_eq!(api.get(&run).await.status, 404);
    assert_limited(&api.get(&run).await, "1");
}

async fn each_organization_has_its_own_rate(api: TestApi) {
    let (_, other) = api.another_organization().await;
    let run = format!("/v1/runs/{RUN}");
    for token in [&api.token, &other] {
        let get = || send(api.bare(Method::GET, &run).bearer_auth(token));
        for _ in 0..3 {
            assert_eq!(get().await.status, 404);
        }
        assert_limited(&get().await, "1");
    }
}

/// The limit is checked right after the token, whatever else is wrong with a request.
async fn authenticated_requests_count_whatever_their_outcome(api: TestApi) {
    let foreign = uuid::Uuid::from_u128(1).to_string();
    let weak = api.token(contracts::Scopes::Named(vec![])).await;
    let path = format!("/v1/runs/{RUN}");
    let wrong = || api.request(Method::GET, &path).header("x-organization-id", &foreign);
    assert_eq!(send(wrong()).await.status, 403);
    assert_eq!(send(api.bare(Method::GET, &path).bearer_auth(&weak)).await.status, 403);
    assert_eq!(api.get("/v1/runs/x").await.status, 422);
    assert_limited(&send(wrong()).await, "1");
    assert_limited(&send(api.bare(Method::GET, &path).bearer_auth(&weak)).await, "1");
    assert_limited(&send(api.put("/v1/runs/x", "[")).await, "1");
    assert_eq!(send(api.bare(Method::GET, &path).bearer_auth("no-token")).await.status, 401);
}

async fn health_and_unknown_paths_are_not_limited(api: TestApi) {
    for _ in 0..20 {
        assert_eq!(api.get("/v1/health").await.status, 200);
        assert_eq!(api.get("/nowhere").await.status, 404);
    }
}

fn unknown(n: u8) -> String {
    format!("rf_live_{}", hex(n).repeat(32))
}

fn hex(n: u8) -> String {
    format!("{n:02x}")
}

async fn guess(api: &TestApi, n: u8) -> Reply {
    send(api.bare(Method::GET, "/v1/runs/x").bearer_auth(unknown(n))).await
}

async fn a_client_that_guesses_tokens_is_limited_and_valid_tokens_are_not(api: TestApi) {
    assert_eq!(api.get("/v1/runs/x").await.status, 422); // the token is cached from here on
    for n in 0..3 {
        assert_eq!(guess(&api, n).await.status, 401);
    }
    assert_limited(&guess(&api, 3).await, "10");
    assert_limited(&guess(&api, 0).await, "10");
    // A token not used before is accepted as well.
    let fresh = api.token(contracts::Scopes::All).await;
    assert_eq!(send(api.bare(Method::GET, "/v1/runs/x").bearer_auth(&fresh)).await.status, 422);
    for _ in 0..3 {
        assert_eq!(api.get("/v1/runs/x").await.status, 422);
        api.clock.advance(Duration::from_secs(3)); // the token is looked up again in between
    }
    assert_limited(&guess(&api, 4).await, "1");
    api.clock.advance(SECOND);
    assert_eq!(guess(&api, 4).await.status, 401);
    assert_limited(&guess(&api, 5).await, "10");
}

/// The address of the tests' client is a trusted proxy; another address of the host is not.
async fn clients_behind_a_trusted_proxy_are_limited_separately(api: TestApi) {
    let guess_for = async |client: &str, n| {
        let request = api.bare(Method::GET, "/v1/runs/x").header("x-forwarded-for", client);
        send(request.bearer_auth(unknown(n))).await
    };
    for client in ["203.0.113.7", "1.1.1.1, 203.0.113.8"] {
        for n in 0..3 {
            assert_eq!(guess_for(client, n).await.status, 401);
        }
        assert_limited(&guess_for(client, 3).await, "10");
    }
    assert_limited(&guess_for("2.2.2.2, 203.0.113.8", 4).await, "10");
    let outside = reqwest::Client::builder().no_proxy().local_address(IpAddr::from([127, 0, 0, 9]));
    let outside = outside.build().unwrap();
    for n in 0..4 {
        let request = outside.get(format!("http://{}/v1/runs/x", api.addr)).bearer_auth(unknown(n));
        let reply = send(request.header("x-forwarded-for", format!("203.0.113.{}", 20 + n))).await;
        assert_eq!(reply.status, if n < 3 { 401 } else { 429 });
    }
}

async fn peers_are_limited_separately(api: TestApi) {
    let guess_from = async |address: [u8; 4], n| {
        let client = reqwest::Client::builder().no_proxy().local_address(IpAddr::from(address));
        let request = client.build().unwrap().get(format!("http://{}/v1/runs/x", api.addr));
        send(request.bearer_auth(unknown(n))).await
    };
    for address in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        for n in 0..3 {
            assert_eq!(guess_from(address, n).await.status, 401);
        }
        assert_limited(&guess_from(address, 3).await, "10");
    }
}

async fn requests_that_cost_no_look_up_do_not_count_as_failures(api: TestApi) {
    for _ in 0..20 {
        assert_eq!(send(api.bare(Method::GET, "/v1/runs/x")).await.status, 401);
        assert_eq!(send(api.bare(Method::GET, "/v1/runs/x").bearer_auth("guess")).await.status, 401);
    }
    assert_eq!(guess(&api, 0).await.status, 401);
}

/// Tokens that could not be looked up are not failures, however many there are.
#[tokio::test]
async fn an_outage_does_not_count_as_a_failure() {
    let database = TestDatabase::new(Backend::Postgres);
    let proxy = Proxy::start(database.server()).await;
    let url = database.url_through(proxy.addr);
    let limits = Limits { database_time: SECOND / 4, ..failures() };
    let api = TestApi::at(database, &url, limits).await;
    let fresh = api.token(contracts::Scopes::All).await;
    proxy.freeze();
    for n in 0..6 {
        assert_eq!(guess(&api, n).await.status, 503);
    }
    proxy.thaw();
    let status = loop {
        let reply = send(api.bare(Method::GET, "/v1/runs/x").bearer_auth(&fresh)).await;
        if reply.status != 503 {
            break reply.status;
        }
    };
    assert_eq!(status, 422);
}

async fn valid_tokens_do_not_count_as_failures(api: TestApi) {
    for _ in 0..20 {
        let fresh = api.token(contracts::Scopes::All).await;
        assert_eq!(send(api.bare(Method::GET, "/v1/runs/x").bearer_auth(fresh)).await.status, 422);
    }
}

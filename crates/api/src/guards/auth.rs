//! Authentication and authorization (contract section 3): token, the organization's rate limit, organization
//! header, scope, in this order.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpMessage, HttpRequest};
use contracts::{ErrorCode, OrgId, Scope};
use parking_lot::Mutex;
use store::{Principal, TokenText};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::context::Api;
use crate::error::ApiError;
use crate::guards::database_time::DatabaseTime;
use crate::guards::rate_limit::{AuthFailureLimiter, RequestLimiter};
use crate::limits::Limits;
use crate::query::params::parse_uuid;
use crate::transport::client::client;

/// State shared by all requests: the token cache and the rate limiters.
pub(crate) struct Authenticator {
    tokens: KnownTokens,
    requests: RequestLimiter,
    failures: AuthFailureLimiter,
    /// Serializes token look-ups for clients over the failure limit.
    suspects: Semaphore,
}

/// How long a client over the failure limit waits for its look-up to start.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(1);

impl Authenticator {
    pub(crate) fn new(limits: &Limits) -> Authenticator {
        Authenticator {
            tokens: KnownTokens::default(),
            requests: RequestLimiter::new(limits.requests),
            failures: AuthFailureLimiter::new(limits.auth_failures),
            suspects: Semaphore::new(1),
        }
    }

    /// Returns the principal of a token. A cached token is not subject to the failure limit, even if another
    /// client at the same address has exceeded it. A client over its limit of unknown tokens may still
    /// present a valid one, so its token is looked up too: one look-up at a time for all such clients, with a
    /// bounded wait.
    async fn principal(
        &self,
        api: &Api,
        database: &mut DatabaseTime,
        client: IpAddr,
        token: TokenText,
    ) -> Result<Principal, ApiError> {
        let (now, moment) = (api.store.clock().monotonic(), api.store.clock().now());
        let is_good = |principal: &Principal| principal.expires_at.is_none_or(|end| moment < end);
        let known = self.tokens.get(token).filter(|(principal, _)| is_good(principal));
        let is_stranger = known.is_none();
        match known {
            Some((principal, since)) if now.saturating_sub(since) < KnownTokens::TTL => return Ok(principal),
            Some(_) => {}
            // Counted before the look-up, so that concurrent requests and early hang-ups count too.
            None => {
                if let Err(wait) = self.failures.take(client, now) {
                    return self.suspect(api, database, token, now, wait).await;
                }
            }
        }
        let found = look_up(api, database, token).await;
        if is_stranger && !matches!(found, Ok(None)) {
            self.failures.give_back(client);
        }
        let found = found?;
        self.tokens.put(token, found.clone(), now); // `now` is from before the look-up
        Ok(found.ok_or(ErrorCode::Unauthorized)?)
    }

    /// Like [`Authenticator::principal`], for a client over the failure limit. Fails with a retry time of `wait`
    /// unless the token is valid.
    async fn suspect(
        &self,
        api: &Api,
        database: &mut DatabaseTime,
        token: TokenText,
        now: Duration,
        wait: Duration,
    ) -> Result<Principal, ApiError> {
        let Ok(Ok(_turn)) = timeout(SUSPECT_TIMEOUT, self.suspects.acquire()).await else {
            return Err(ApiError::RateLimited(wait));
        };
        let found = look_up(api, database, token).await?.ok_or(ApiError::RateLimited(wait))?;
        self.tokens.put(token, Some(found.clone()), now);
        Ok(found)
    }
}

/// Looks up the principal of a token in the database.
async fn look_up(
    api: &Api,
    database: &mut DatabaseTime,
    token: TokenText,
) -> Result<Option<Principal>, ApiError> {
    let now = api.store.clock().now();
    database.within(async { Ok(api.store.read(move |tx| store::authenticate(tx, now, token)).await?) }).await
}

/// Checks that a request has a valid token with `scope`, and returns the organization of the token.
pub(crate) async fn authenticate(
    api: &Api,
    authenticator: &Authenticator,
    database: &mut DatabaseTime,
    request: &HttpRequest,
    scope: Scope,
) -> Result<OrgId, ApiError> {
    let token = bearer(request).ok_or(ErrorCode::Unauthorized)?;
    let client = client(request, &api.trusted_proxies);
    let principal = authenticator.principal(api, database, client, token).await?;
    request.extensions_mut().insert(principal.org_id); // for the access log
    let now = api.store.clock().monotonic();
    authenticator.requests.take(principal.org_id, now).map_err(ApiError::RateLimited)?;
    for named in request.headers().get_all("x-organization-id") {
        let named = parse_uuid(&["header", "x-organization-id"], named.to_str().unwrap_or_default())?;
        if OrgId(named) != principal.org_id {
            return Err(ErrorCode::OrganizationMembershipRequired.into());
        }
    }
    if !principal.scopes.allow(scope) {
        return Err(ErrorCode::PermissionDenied.into());
    }
    Ok(principal.org_id)
}

fn bearer(request: &HttpRequest) -> Option<TokenText> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| TokenText::parse(token.trim_matches(' ')))?
}

/// Cache of looked-up tokens. A look-up costs a round trip to the database, and clients call in bursts. In
/// return, a revoked token may still be accepted for up to [`KnownTokens::TTL`]; an expired one is not.
/// Unknown tokens are not cached, so a new token works at once. Not moka: it drops an entry at its TTL, while
/// an outdated one still shows that its token was valid.
#[derive(Default)]
struct KnownTokens(Mutex<HashMap<TokenText, (Principal, Duration)>>);

impl KnownTokens {
    const TTL: Duration = Duration::from_secs(5);
    /// About 2 MiB. A full cache evicts entries older than the TTL; if it stays full, new tokens are not
    /// added.
    const MAX: usize = 10_000;

    /// Returns the cached principal of a token and the time of its look-up.
    fn get(&self, token: TokenText) -> Option<(Principal, Duration)> {
        self.0.lock().get(&token).cloned()
    }

    fn put(&self, token: TokenText, found: Option<Principal>, now: Duration) {
        let mut known = self.0.lock();
        let Some(principal) = found else {
            known.remove(&token);
            return;
        };
        if known.len() >= Self::MAX {
            known.retain(|_, (_, since)| now.saturating_sub(*since) < Self::TTL);
        }
        if known.len() < Self::MAX {
            known.insert(token, (principal, now));
        }
    }
}

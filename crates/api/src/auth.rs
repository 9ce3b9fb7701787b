//! Who is calling, and whether they may (contract section 3): token, the organization's rate, organization header,
//! scope, in this order.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpMessage, HttpRequest};
use contracts::{ErrorCode, OrgId, Scope};
use store::{Principal, TokenText};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::client::client;
use crate::error::ApiError;
use crate::limits::DatabaseTime;
use crate::params::parse_uuid;
use crate::rate_limit::{Failures, Requests};
use crate::{Api, Limits};

/// What is kept of callers from one request to the next.
pub(crate) struct Gate {
    tokens: KnownTokens,
    requests: Requests,
    failures: Failures,
    /// Whose turn it is of those that are over the limit.
    suspects: Semaphore,
}

/// How long one of them waits for its turn.
const SUSPECTS_PATIENCE: Duration = Duration::from_secs(1);

impl Gate {
    pub(crate) fn new(limits: &Limits) -> Gate {
        Gate {
            tokens: KnownTokens::default(),
            requests: Requests::new(limits.requests),
            failures: Failures::new(limits.auth_failures),
            suspects: Semaphore::new(1),
        }
    }

    /// Returns the principal of a token. A cached token is never rate limited, whoever shares the client's address. A
    /// client over its limit of unknown tokens may still present a valid one, so its token is looked up too: one look-up
    /// at a time for all such clients, with a bounded wait.
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
            // Counted beforehand, so that neither many at once nor those who hang up at once get through for nothing.
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
        self.tokens.put(token, found.clone(), now); // as of before the look-up
        Ok(found.ok_or(ErrorCode::Unauthorized)?)
    }

    /// The same for a client that may try again only after `wait`, unless its token turns out to be good.
    async fn suspect(
        &self,
        api: &Api,
        database: &mut DatabaseTime,
        token: TokenText,
        now: Duration,
        wait: Duration,
    ) -> Result<Principal, ApiError> {
        let Ok(Ok(_turn)) = timeout(SUSPECTS_PATIENCE, self.suspects.acquire()).await else {
            return Err(ApiError::RateLimited(wait));
        };
        let found = look_up(api, database, token).await?.ok_or(ApiError::RateLimited(wait))?;
        self.tokens.put(token, Some(found.clone()), now);
        Ok(found)
    }
}

/// Whose the token is, of the database.
async fn look_up(
    api: &Api,
    database: &mut DatabaseTime,
    token: TokenText,
) -> Result<Option<Principal>, ApiError> {
    let now = api.store.clock().now();
    database.within(async { Ok(api.store.read(move |tx| store::authenticate(tx, now, token)).await?) }).await
}

/// Lets a request pass that bears a known token with that scope, and answers whose it is.
pub(crate) async fn authenticate(
    api: &Api,
    gate: &Gate,
    database: &mut DatabaseTime,
    request: &HttpRequest,
    scope: Scope,
) -> Result<OrgId, ApiError> {
    let token = bearer(request).ok_or(ErrorCode::Unauthorized)?;
    let client = client(request, &api.trusted_proxies);
    let principal = gate.principal(api, database, client, token).await?;
    request.extensions_mut().insert(principal.org_id); // for the access log
    let now = api.store.clock().monotonic();
    gate.requests.take(principal.org_id, now).map_err(ApiError::RateLimited)?;
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

/// Tokens looked up lately: a look-up costs a round trip to the database, and clients call in bursts. In return
/// a token that is revoked may be taken as it was for up to [`KnownTokens::TTL`]; one that expires is not. A token that
/// was not found is looked up each time, so a new one works at once.
#[derive(Default)]
struct KnownTokens(Mutex<HashMap<TokenText, (Principal, Duration)>>);

impl KnownTokens {
    const TTL: Duration = Duration::from_secs(5);
    /// About 2 MiB. Beyond it, those that are older than the TTL are forgotten, and new ones looked up each time.
    const MAX: usize = 10_000;

    /// Whose the token was when it was last looked up, and when that was.
    fn get(&self, token: TokenText) -> Option<(Principal, Duration)> {
        self.lock().get(&token).cloned()
    }

    fn put(&self, token: TokenText, found: Option<Principal>, now: Duration) {
        let mut known = self.lock();
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

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenText, (Principal, Duration)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

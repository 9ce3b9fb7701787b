//! Who is calling, and whether they may (contract section 3): token, organization header, scope, in this order.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpMessage, HttpRequest};
use contracts::{ErrorCode, OrgId, Scope};
use store::{Principal, TokenText};

use crate::Api;
use crate::error::ApiError;
use crate::params::parse_uuid;

/// Lets a request pass that bears a known token with that scope, and answers whose it is.
pub(crate) async fn authenticate(
    api: &Api,
    tokens: &KnownTokens,
    request: &HttpRequest,
    scope: Scope,
) -> Result<OrgId, ApiError> {
    let token = bearer(request).ok_or(ErrorCode::Unauthorized)?;
    let principal = tokens.principal(api, token).await?.ok_or(ErrorCode::Unauthorized)?;
    request.extensions_mut().insert(principal.org_id); // for the access log
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
/// a token that is removed, or whose scopes change, may be taken as it was for up to [`KnownTokens::TTL`]. A token
/// that was not found is looked up each time, so a new one works at once.
#[derive(Default)]
pub(crate) struct KnownTokens(Mutex<HashMap<TokenText, (Principal, Duration)>>);

impl KnownTokens {
    const TTL: Duration = Duration::from_secs(5);
    /// About 2 MiB. Beyond it, tokens are looked up each time.
    const MAX: usize = 10_000;

    async fn principal(&self, api: &Api, token: TokenText) -> Result<Option<Principal>, ApiError> {
        let now = api.store.clock().monotonic();
        if let Some(principal) = self.get(token, now) {
            return Ok(Some(principal));
        }
        let found = api.store.read(move |tx| store::authenticate(tx, token)).await?;
        if let Some(principal) = &found {
            self.put(token, principal.clone(), now); // as of before the look-up
        }
        Ok(found)
    }

    fn get(&self, token: TokenText, now: Duration) -> Option<Principal> {
        let known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (principal, since) = known.get(&token)?;
        (now.saturating_sub(*since) < Self::TTL).then(|| principal.clone())
    }

    fn put(&self, token: TokenText, principal: Principal, now: Duration) {
        let mut known = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if known.len() >= Self::MAX {
            known.retain(|_, (_, since)| now.saturating_sub(*since) < Self::TTL);
        }
        if known.len() < Self::MAX {
            known.insert(token, (principal, now));
        }
    }
}

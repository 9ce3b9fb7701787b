//! API tokens: made here, shown once, kept as SHA-256.

use contracts::{OrgId, Scope, Scopes, Timestamp, TokenId};
use diesel::prelude::*;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::columns::{Key, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::schema::api_tokens;

/// A token as its bearer shows it: `rf_live_` or `rf_svc_` and 64 hex digits (contract section 3, "Tokens").
/// Only its hash is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenText([u8; 32]);

impl TokenText {
    /// Takes what stands behind `Bearer `; none if it does not look like a token.
    pub fn parse(text: &str) -> Option<TokenText> {
        let digits = text.strip_prefix("rf_live_").or_else(|| text.strip_prefix("rf_svc_"))?;
        let hex = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        hex.then(|| TokenText(Sha256::digest(text.as_bytes()).into()))
    }
}

/// A token just made; the only time its text is known.
#[derive(serde::Serialize)]
#[allow(missing_docs)]
pub struct NewToken {
    pub id: TokenId,
    pub org_id: OrgId,
    #[serde(serialize_with = "shown")]
    pub token: Zeroizing<String>,
    pub scopes: Scopes,
    pub label: Option<String>,
    pub created_at: Timestamp,
}

fn shown<S: serde::Serializer>(text: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// Who is calling.
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    /// The token's id, for logs.
    pub token_id: TokenId,
    /// The one organization it belongs to.
    pub org_id: OrgId,
    /// What it may do.
    pub scopes: Scopes,
}

/// Makes a token of 256 random bits for an organization that exists.
pub fn create_token(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    scopes: Scopes,
    label: Option<String>,
) -> Result<NewToken, StoreError> {
    let random = Zeroizing::new(rand::random::<[u8; 32]>());
    let token = Zeroizing::new(format!("rf_live_{}", hex::encode(*random)));
    let id = TokenId::new(now);
    let named = match &scopes {
        Scopes::All => None,
        Scopes::Named(named) => Some(named.iter().map(Scope::to_string).collect::<Vec<_>>().join(" ")),
    };
    diesel::insert_into(api_tokens::table)
        .values((
            api_tokens::id.eq(Key::from(id)),
            api_tokens::org_id.eq(Key::from(org)),
            api_tokens::token_sha256.eq(Sha256::digest(token.as_bytes()).to_vec()),
            api_tokens::scopes.eq(named),
            api_tokens::label.eq(&label),
            api_tokens::created_at.eq(Time::from(now)),
        ))
        .execute(tx)?;
    Ok(NewToken { id, org_id: org, token, scopes, label, created_at: now })
}

/// Who bears this token.
pub fn authenticate(tx: &mut AnyConnection, token: TokenText) -> Result<Option<Principal>, StoreError> {
    let row: Option<(Key, Key, Option<String>)> = api_tokens::table
        .filter(api_tokens::token_sha256.eq(token.0.as_slice()))
        .select((api_tokens::id, api_tokens::org_id, api_tokens::scopes))
        .first(tx)
        .optional()?;
    let Some((id, org, scopes)) = row else { return Ok(None) };
    let scopes = match scopes {
        None => Scopes::All,
        // A scope of a later version is none of ours: it allows nothing here.
        Some(named) => Scopes::Named(named.split(' ').filter_map(|scope| scope.parse().ok()).collect()),
    };
    Ok(Some(Principal { token_id: id.into(), org_id: org.into(), scopes }))
}

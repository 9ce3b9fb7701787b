//! API tokens: created here, shown once, stored as SHA-256, valid until they expire or are revoked.

use contracts::{OrgId, Scope, Scopes, Timestamp, TokenId};
use diesel::prelude::*;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::schema::api_tokens;

/// A token as a client presents it: `rf_live_` or `rf_svc_` and 64 hex digits (contract section 3, "Tokens").
/// Only its hash is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenText([u8; 32]);

impl TokenText {
    /// Parses the text after `Bearer `. Returns `None` if it does not have the form of a token.
    pub fn parse(text: &str) -> Option<TokenText> {
        let digits = text.strip_prefix("rf_live_").or_else(|| text.strip_prefix("rf_svc_"))?;
        let hex = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        hex.then(|| TokenText(Sha256::digest(text.as_bytes()).into()))
    }
}

/// A newly created token. Its text is available only here.
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
    pub expires_at: Option<Timestamp>,
}

/// A token's record, without its text.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Token {
    pub id: TokenId,
    pub org_id: OrgId,
    pub scopes: Scopes,
    pub label: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

fn shown<S: serde::Serializer>(text: &Zeroizing<String>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// The authenticated caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Principal {
    /// The token's id, for logs.
    pub token_id: TokenId,
    /// The token's organization.
    pub org_id: OrgId,
    /// The operations that the token permits.
    pub scopes: Scopes,
    /// The time from which the token is invalid.
    pub expires_at: Option<Timestamp>,
}

/// Creates a token of 256 random bits for an existing organization, valid until `expires_at` or until it is
/// revoked.
pub fn create_token(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    scopes: Scopes,
    label: Option<String>,
    expires_at: Option<Timestamp>,
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
            api_tokens::id.eq(DbId::from(id)),
            api_tokens::org_id.eq(DbId::from(org)),
            api_tokens::token_sha256.eq(Sha256::digest(token.as_bytes()).to_vec()),
            api_tokens::scopes.eq(named),
            api_tokens::label.eq(&label),
            api_tokens::created_at.eq(DbTime::from(now)),
            api_tokens::expires_at.eq(expires_at.map(DbTime::from)),
        ))
        .execute(tx)?;
    Ok(NewToken { id, org_id: org, token, scopes, label, created_at: now, expires_at })
}

/// Returns the principal of a token that is valid at `now`.
pub fn authenticate(
    tx: &mut AnyConnection,
    now: Timestamp,
    token: TokenText,
) -> Result<Option<Principal>, StoreError> {
    let expires_at = api_tokens::expires_at;
    let row: Option<(DbId, DbId, Option<String>, Option<DbTime>)> = api_tokens::table
        .filter(api_tokens::token_sha256.eq(token.0.as_slice()))
        .filter(api_tokens::revoked_at.is_null())
        .filter(expires_at.is_null().or(expires_at.assume_not_null().gt(DbTime::from(now))))
        .select((api_tokens::id, api_tokens::org_id, api_tokens::scopes, expires_at))
        .first(tx)
        .optional()?;
    Ok(row.map(|(id, org, scopes, expires_at)| Principal {
        token_id: id.into(),
        org_id: org.into(),
        scopes: read_scopes(scopes),
        expires_at: expires_at.map(Into::into),
    }))
}

/// Returns an organization's tokens, oldest first, including expired and revoked ones.
pub fn list_tokens(tx: &mut AnyConnection, org: OrgId) -> Result<Vec<Token>, StoreError> {
    let rows: Vec<TokenRow> = api_tokens::table
        .filter(api_tokens::org_id.eq(DbId::from(org)))
        .order_by((api_tokens::created_at, api_tokens::id))
        .select(TokenRow::as_select())
        .load(tx)?;
    Ok(rows.into_iter().map(Token::from).collect())
}

/// Revokes a token and returns its record; `None` if the organization has no such token. A token that was
/// revoked before is unchanged.
pub fn revoke_token(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    id: TokenId,
) -> Result<Option<Token>, StoreError> {
    let is_it = api_tokens::id.eq(DbId::from(id)).and(api_tokens::org_id.eq(DbId::from(org)));
    diesel::update(api_tokens::table.filter(is_it).filter(api_tokens::revoked_at.is_null()))
        .set(api_tokens::revoked_at.eq(DbTime::from(now)))
        .execute(tx)?;
    let row: Option<TokenRow> =
        api_tokens::table.filter(is_it).select(TokenRow::as_select()).first(tx).optional()?;
    Ok(row.map(Token::from))
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = api_tokens)]
struct TokenRow {
    id: DbId,
    org_id: DbId,
    scopes: Option<String>,
    label: Option<String>,
    created_at: DbTime,
    expires_at: Option<DbTime>,
    revoked_at: Option<DbTime>,
}

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Token {
        Token {
            id: row.id.into(),
            org_id: row.org_id.into(),
            scopes: read_scopes(row.scopes),
            label: row.label,
            created_at: row.created_at.into(),
            expires_at: row.expires_at.map(Into::into),
            revoked_at: row.revoked_at.map(Into::into),
        }
    }
}

fn read_scopes(scopes: Option<String>) -> Scopes {
    match scopes {
        None => Scopes::All,
        // Scopes of later versions are ignored: they permit nothing here.
        Some(named) => Scopes::Named(named.split(' ').filter_map(|scope| scope.parse().ok()).collect()),
    }
}

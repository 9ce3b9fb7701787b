//! Checks whether the configured keys open the stored secrets, and reseals secrets when the keys change.

use contracts::{OrgId, SecretId};
use diesel::prelude::*;
use serde::Serialize;

use crate::columns::DbId;
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::schema::signing_secrets as table;
use crate::secrets::keyring::{Keyring, Sealed};

/// Secrets resealed in one transaction, which takes a few milliseconds.
const BATCH: i64 = 100;

/// A secret that no configured key opens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unopened {
    /// The secret.
    pub id: SecretId,
    /// Its organization.
    pub org_id: OrgId,
    /// The name of the key that its row states.
    pub key_id: String,
    /// Why it doesn't open, in a sentence.
    pub reason: String,
}

/// The result for one batch of secrets.
#[derive(Debug, Default, PartialEq)]
pub struct Rewrapped {
    /// Number of secrets that were resealed.
    pub rewrapped: usize,
    /// Secrets that could not be opened and are unchanged.
    pub unopened: Vec<Unopened>,
    /// The next batch starts after this secret; `None` if all have been processed.
    pub behind: Option<SecretId>,
}

type Row = (DbId, DbId, String, Vec<u8>);

/// Reseals a batch of the secrets after `behind` with the first key; skips those sealed with it. Safe to
/// repeat, and safe while secrets are created and used.
pub fn rewrap_secrets(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    behind: Option<SecretId>,
) -> Result<Rewrapped, StoreError> {
    let behind = behind.unwrap_or(SecretId(uuid::Uuid::nil()));
    let rows: Vec<Row> = table::table
        .filter(table::id.gt(DbId::from(behind)))
        .filter(table::key_id.ne(keyring.first()))
        .order_by(table::id)
        .limit(BATCH)
        .select((table::id, table::org_id, table::key_id, table::sealed))
        .load(tx)?;
    let mut done = Rewrapped { behind: rows.last().map(|(id, ..)| (*id).into()), ..Rewrapped::default() };
    for row in rows {
        let (id, org) = (SecretId::from(row.0), OrgId::from(row.1));
        let sealed = Sealed { key_id: row.2, bytes: row.3 };
        match keyring.open(org, id, &sealed) {
            Ok(secret) => {
                let anew = keyring.seal(org, id, &secret);
                done.rewrapped += diesel::update(table::table.find(row.0))
                    .filter(table::sealed.eq(&sealed.bytes)) // unless changed concurrently
                    .set((table::key_id.eq(anew.key_id), table::sealed.eq(anew.bytes)))
                    .execute(tx)?;
            }
            Err(error) => done.unopened.push(Unopened {
                id,
                org_id: org,
                key_id: sealed.key_id,
                reason: error.to_string(),
            }),
        }
    }
    Ok(done)
}

/// Secrets that can't be opened because their key is missing or wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct MissingKey {
    /// The name of the key that their rows state.
    pub key_id: String,
    /// Number of these secrets.
    pub secrets: i64,
    /// Whether one of them is enabled, so that an attempt may need it.
    pub needed: bool,
    /// Why it doesn't open, in a sentence.
    pub reason: String,
}

/// Tries to open one secret per key, and returns the keys that fail.
pub fn missing_keys(tx: &mut AnyConnection, keyring: &Keyring) -> Result<Vec<MissingKey>, StoreError> {
    let used: Vec<(String, i64)> = table::table
        .group_by(table::key_id)
        .select((table::key_id, diesel::dsl::count_star()))
        .order_by(table::key_id)
        .load(tx)?;
    let mut missing = Vec::new();
    for (key_id, secrets) in used {
        let (id, org, bytes): (DbId, DbId, Vec<u8>) = table::table
            .filter(table::key_id.eq(&key_id))
            .select((table::id, table::org_id, table::sealed))
            .first(tx)?;
        let sealed = Sealed { key_id, bytes };
        if let Err(error) = keyring.open(org.into(), id.into(), &sealed) {
            let Sealed { key_id, .. } = sealed;
            let needed = is_needed(tx, &key_id)?;
            missing.push(MissingKey { key_id, secrets, needed, reason: error.to_string() });
        }
    }
    Ok(missing)
}

/// The result of opening stored secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenedSecrets {
    /// Number of stored secrets.
    pub stored: i64,
    /// Number of those that were tried.
    pub tried: usize,
    /// Those that could not be opened, by key and reason.
    pub missing: Vec<MissingKey>,
}

/// Tries to open every secret, up to `limit`; enabled ones first.
pub fn open_secrets(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    limit: u32,
) -> Result<OpenedSecrets, StoreError> {
    type Row = (DbId, DbId, String, Vec<u8>, bool);
    let stored = table::table.count().get_result(tx)?;
    let rows: Vec<Row> = table::table
        .order_by((table::disabled_at.is_not_null(), table::id))
        .limit(limit.into())
        .select((table::id, table::org_id, table::key_id, table::sealed, table::disabled_at.is_null()))
        .load(tx)?;
    let mut opened = OpenedSecrets { stored, tried: rows.len(), missing: Vec::new() };
    for (id, org, key_id, bytes, needed) in rows {
        let sealed = Sealed { key_id, bytes };
        let Err(error) = keyring.open(org.into(), id.into(), &sealed) else { continue };
        let reason = error.to_string();
        let known = |missing: &&mut MissingKey| missing.key_id == sealed.key_id && missing.reason == reason;
        match opened.missing.iter_mut().find(known) {
            Some(missing) => {
                missing.secrets += 1;
                missing.needed |= needed;
            }
            None => opened.missing.push(MissingKey { key_id: sealed.key_id, secrets: 1, needed, reason }),
        }
    }
    Ok(opened)
}

fn is_needed(tx: &mut AnyConnection, key_id: &str) -> QueryResult<bool> {
    let enabled: Option<DbId> = table::table
        .filter(table::key_id.eq(key_id))
        .filter(table::disabled_at.is_null())
        .select(table::id)
        .first(tx)
        .optional()?;
    Ok(enabled.is_some())
}

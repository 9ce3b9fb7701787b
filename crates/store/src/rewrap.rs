//! Whether the keys at hand fit the secrets at rest, and sealing those anew when the keys change.

use contracts::{OrgId, SecretId};
use diesel::prelude::*;
use serde::Serialize;

use crate::columns::Key;
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::keyring::{Keyring, Sealed};
use crate::schema::signing_secrets as table;

/// Secrets sealed anew in one transaction: a few milliseconds.
const BATCH: i64 = 100;

/// A secret that none of the keys opens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unopened {
    /// The secret.
    pub id: SecretId,
    /// Whose it is.
    pub org_id: OrgId,
    /// The key it says it is sealed with.
    pub key_id: String,
    /// Why it doesn't open, in a sentence.
    pub reason: String,
}

/// What became of some of the secrets.
#[derive(Debug, Default, PartialEq)]
pub struct Rewrapped {
    /// How many were sealed anew.
    pub rewrapped: usize,
    /// Those that are as they were.
    pub unopened: Vec<Unopened>,
    /// Where to go on; none when all have been seen.
    pub behind: Option<SecretId>,
}

type Row = (Key, Key, String, Vec<u8>);

/// Seals some of the secrets whose ids come after `behind` with the first key, unless they are. It may be repeated,
/// and be done while secrets are made and used.
pub fn rewrap_secrets(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    behind: Option<SecretId>,
) -> Result<Rewrapped, StoreError> {
    let behind = behind.unwrap_or(SecretId(uuid::Uuid::nil()));
    let rows: Vec<Row> = table::table
        .filter(table::id.gt(Key::from(behind)))
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
                    .filter(table::sealed.eq(&sealed.bytes)) // unless someone else was quicker
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

/// Secrets that can't be opened for want of their key.
#[derive(Clone, Debug, PartialEq)]
pub struct MissingKey {
    /// The key they say they are sealed with.
    pub key_id: String,
    /// How many there are.
    pub secrets: i64,
    /// Whether an attempt may still want one of them: it is enabled.
    pub needed: bool,
    /// Why it doesn't open, in a sentence.
    pub reason: String,
}

/// Tries each key on one secret that is sealed with it.
pub fn missing_keys(tx: &mut AnyConnection, keyring: &Keyring) -> Result<Vec<MissingKey>, StoreError> {
    let used: Vec<(String, i64)> = table::table
        .group_by(table::key_id)
        .select((table::key_id, diesel::dsl::count_star()))
        .order_by(table::key_id)
        .load(tx)?;
    let mut missing = Vec::new();
    for (key_id, secrets) in used {
        let (id, org, bytes): (Key, Key, Vec<u8>) = table::table
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

fn is_needed(tx: &mut AnyConnection, key_id: &str) -> QueryResult<bool> {
    let enabled: Option<Key> = table::table
        .filter(table::key_id.eq(key_id))
        .filter(table::disabled_at.is_null())
        .select(table::id)
        .first(tx)
        .optional()?;
    Ok(enabled.is_some())
}

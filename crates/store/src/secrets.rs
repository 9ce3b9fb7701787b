//! Signing secrets of organizations.

use contracts::{CallbackSecret, NewSecret, OrgId, SecretId, SigningSecret, Timestamp};
use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use zeroize::Zeroizing;

use crate::columns::{Key, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::keyring::{Keyring, KeyringError, Sealed};
use crate::schema::signing_secrets as table;

/// Makes a secret of 32 random bytes. The organization's first becomes current, later ones do not.
pub fn create_secret(
    tx: &mut AnyConnection,
    now: Timestamp,
    keyring: &Keyring,
    org: OrgId,
    label: Option<String>,
) -> Result<NewSecret, StoreError> {
    let plain_secret = SigningSecret::from_key(&Zeroizing::new(rand::random::<[u8; 32]>()));
    let id = SecretId::new(now);
    let sealed = keyring.seal(org, id, &plain_secret);
    let mut secret = CallbackSecret {
        id,
        org_id: org,
        key_prefix: plain_secret.key_prefix().to_owned(),
        is_current: true,
        label,
        disabled_at: None,
        last_used_at: None,
        created_at: now,
        updated_at: now,
    };
    let first = table::table.filter(table::org_id.eq(Key::from(org))).select(table::id).first::<Key>(tx);
    secret.is_current = first.optional()?.is_none();
    let inserted = tx.transaction(|tx| insert(tx, &secret, &sealed));
    match inserted {
        // Another one became the first meanwhile.
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) if secret.is_current => {
            secret.is_current = false;
            insert(tx, &secret, &sealed)?;
        }
        other => other?,
    }
    Ok(NewSecret { plain_secret, secret })
}

fn insert(tx: &mut AnyConnection, secret: &CallbackSecret, sealed: &Sealed) -> QueryResult<()> {
    diesel::insert_into(table::table)
        .values((
            table::id.eq(Key::from(secret.id)),
            table::org_id.eq(Key::from(secret.org_id)),
            table::key_prefix.eq(&secret.key_prefix),
            table::key_id.eq(&sealed.key_id),
            table::sealed.eq(&sealed.bytes),
            table::is_current.eq(secret.is_current),
            table::label.eq(&secret.label),
            table::created_at.eq(Time::from(secret.created_at)),
            table::updated_at.eq(Time::from(secret.updated_at)),
        ))
        .execute(tx)
        .map(drop)
}

/// The secret that new deliveries of the organization are frozen with.
pub(crate) fn current_secret(tx: &mut AnyConnection, org: OrgId) -> QueryResult<Option<SecretId>> {
    let current = table::table
        .filter(table::org_id.eq(Key::from(org)))
        .filter(table::is_current)
        .select(table::id)
        .first::<Key>(tx)
        .optional()?;
    Ok(current.map(SecretId::from))
}

/// Opens a secret to sign with it. The inner error says why it can't be opened.
pub fn open_secret(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    org: OrgId,
    id: SecretId,
) -> Result<Result<SigningSecret, KeyringError>, StoreError> {
    let (key_id, bytes) = table::table
        .find(Key::from(id))
        .filter(table::org_id.eq(Key::from(org)))
        .select((table::key_id, table::sealed))
        .first::<(String, Vec<u8>)>(tx)?;
    Ok(keyring.open(org, id, &Sealed { key_id, bytes }))
}

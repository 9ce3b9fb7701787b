//! Manages the signing secrets of organizations.

use contracts::{CallbackSecret, NewSecret, OrgId, SecretId, SigningSecret, Timestamp};
use diesel::prelude::*;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::columns::{DbId, DbTime, Id};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::idempotency::{IdempotencyKey, KeyRecord, find_keys, keep_answer, take_keys};
use crate::page::{PageRequest, Rows, paged, position};
use crate::prepared::prepared;
use crate::schema::signing_secrets as table;
use crate::secrets::keyring::{Keyring, Sealed};
use crate::secrets::signing::open_secret;

/// Creates a secret of 32 random bytes. It becomes current if the organization has no other enabled secret.
pub fn create_secret(
    tx: &mut AnyConnection,
    now: Timestamp,
    keyring: &Keyring,
    org: OrgId,
    label: Option<String>,
) -> Result<NewSecret, StoreError> {
    create(tx, now, keyring, (org, SecretId::new(now)), label)
}

/// The result of a request to create a secret.
#[derive(Debug)]
pub enum CreatedSecret {
    /// A new secret, or the one that the same request created earlier with the same idempotency key, in its
    /// state at creation.
    Created(NewSecret),
    /// The idempotency key was used for another request.
    KeyReused,
}

/// Like [`create_secret`], once per idempotency key.
pub fn create_secret_once(
    tx: &mut AnyConnection,
    now: Timestamp,
    keyring: &Keyring,
    org: OrgId,
    label: Option<String>,
    key: &IdempotencyKey,
) -> Result<CreatedSecret, StoreError> {
    let id = SecretId::new(now);
    if take_keys(tx, now, &[(org, key, id.into())])?.is_empty() {
        let made = find_keys(tx, now, &[(org, key)])?.into_values().find(|made| made.is_answer_to(key));
        let Some(made) = made else { return Ok(CreatedSecret::KeyReused) };
        return Ok(CreatedSecret::Created(replay(tx, keyring, org, made)?));
    }
    let new = create(tx, now, keyring, (org, id), label)?;
    let shown = FirstAnswer { is_current: new.secret.is_current, label: new.secret.label.clone() };
    let shown = serde_json::to_string(&shown).map_err(|error| StoreError::corrupt("a label", &error))?;
    keep_answer(tx, org, key, &shown)?;
    Ok(CreatedSecret::Created(new))
}

/// The fields in the response to a creation that may have changed since.
#[derive(Serialize, Deserialize)]
struct FirstAnswer {
    is_current: bool,
    label: Option<String>,
}

fn replay(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    org: OrgId,
    record: KeyRecord,
) -> Result<NewSecret, StoreError> {
    let unreadable =
        |why: &dyn ToString| StoreError::corrupt("the answer of an idempotency key", &why.to_string());
    let id = record.id.into();
    let secret = find_secret(tx, org, id)?.ok_or_else(|| unreadable(&"its secret does not exist"))?;
    let plain_secret = open_secret(tx, keyring, org, id)?.map_err(|error| unreadable(&error))?;
    let FirstAnswer { is_current, label } =
        serde_json::from_str(&record.answer.unwrap_or_default()).map_err(|error| unreadable(&error))?;
    let updated_at = secret.created_at;
    let secret =
        CallbackSecret { is_current, label, disabled_at: None, last_used_at: None, updated_at, ..secret };
    Ok(NewSecret { plain_secret, secret })
}

fn create(
    tx: &mut AnyConnection,
    now: Timestamp,
    keyring: &Keyring,
    (org_id, id): (OrgId, SecretId),
    label: Option<String>,
) -> Result<NewSecret, StoreError> {
    lock_secrets(tx, org_id)?;
    let plain_secret = SigningSecret::from_key(&Zeroizing::new(rand::random::<[u8; 32]>()));
    let sealed = keyring.seal(org_id, id, &plain_secret);
    let secret = CallbackSecret {
        id,
        org_id,
        key_prefix: plain_secret.key_prefix().to_owned(),
        is_current: newest_enabled(tx, org_id)?.is_none(),
        label,
        disabled_at: None,
        last_used_at: None,
        created_at: now,
        updated_at: now,
    };
    insert(tx, &secret, &sealed)?;
    Ok(NewSecret { plain_secret, secret })
}

/// Serializes changes to which of an organization's secrets is current.
fn lock_secrets(tx: &mut AnyConnection, org: OrgId) -> QueryResult<()> {
    let AnyConnection::Postgres(pg) = tx else { return Ok(()) }; // SQLite has one writer
    // Not FOR UPDATE: other transactions may insert rows that refer to the organization.
    prepared::<Id, _>("SELECT id FROM organizations WHERE id = ? FOR NO KEY UPDATE")
        .bind::<Id, _>(DbId::from(org))
        .execute(pg)
        .map(drop)
}

fn newest_enabled(tx: &mut AnyConnection, org: OrgId) -> QueryResult<Option<DbId>> {
    table::table
        .filter(table::org_id.eq(DbId::from(org)))
        .filter(table::disabled_at.is_null())
        .order_by((table::created_at.desc(), table::id.desc()))
        .select(table::id)
        .first(tx)
        .optional()
}

/// Returns the organization's secret with this id.
pub fn find_secret(
    tx: &mut AnyConnection,
    org: OrgId,
    id: SecretId,
) -> Result<Option<CallbackSecret>, StoreError> {
    let row = table::table
        .find(DbId::from(id))
        .filter(table::org_id.eq(DbId::from(org)))
        .select(SecretRow::as_select())
        .first(tx)
        .optional()?;
    Ok(row.map(CallbackSecret::from))
}

/// Returns a page of the organization's secrets.
pub fn secrets_page(
    tx: &mut AnyConnection,
    org: OrgId,
    request: &PageRequest,
) -> Result<Rows<CallbackSecret>, StoreError> {
    let query = table::table
        .filter(table::org_id.eq(DbId::from(org)))
        .select((table::created_at, table::id))
        .into_boxed();
    let found: Vec<(DbTime, DbId)> = paged!(query, table, request).load(tx)?;
    let found = request.gather(found.into_iter().map(position).collect());
    let rows = table::table.filter(table::id.eq_any(found.ids())).select(SecretRow::as_select()).load(tx)?;
    let secrets = rows.into_iter().map(CallbackSecret::from).collect();
    Ok(found.page(request, secrets, |secret: &CallbackSecret| secret.id.0))
}

/// The requested changes of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUpdate {
    /// The new label: `None` leaves it unchanged, `Some(None)` removes it.
    pub label: Option<Option<String>>,
    /// Whether to make it the current secret.
    pub promote: bool,
}

/// The result of an update.
#[derive(Debug, PartialEq)]
pub enum UpdatedSecret {
    /// The updated secret.
    Updated(CallbackSecret),
    /// The organization has no such secret.
    NotFound,
    /// A disabled secret can't become current; nothing was changed.
    Disabled,
}

/// Labels or promotes a secret. The previously current secret stays enabled.
pub fn update_secret(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    id: SecretId,
    update: &SecretUpdate,
) -> Result<UpdatedSecret, StoreError> {
    lock_secrets(tx, org)?;
    let Some(known) = find_secret(tx, org, id)? else { return Ok(UpdatedSecret::NotFound) };
    if update.promote && known.disabled_at.is_some() {
        return Ok(UpdatedSecret::Disabled);
    }
    let secret = CallbackSecret {
        label: update.label.clone().unwrap_or_else(|| known.label.clone()),
        is_current: known.is_current || update.promote,
        ..known.clone()
    };
    if secret == known {
        return Ok(UpdatedSecret::Updated(known));
    }
    if secret.is_current && !known.is_current {
        demote_current(tx, now, org)?;
    }
    diesel::update(table::table.find(DbId::from(id)))
        .set((
            table::label.eq(&secret.label),
            table::is_current.eq(secret.is_current),
            secret.is_current.then_some(table::demoted_at.eq(None::<DbTime>)),
            table::updated_at.eq(DbTime::from(now)),
        ))
        .execute(tx)?;
    if secret.is_current && !known.is_current {
        forget_demoted(tx, org)?;
    }
    Ok(UpdatedSecret::Updated(CallbackSecret { updated_at: now, ..secret }))
}

/// Disables a secret, and returns whether it exists. If it was current, the newest enabled secret becomes
/// current. Deliveries accepted with the disabled secret are signed with the current one from then on.
pub fn disable_secret(
    tx: &mut AnyConnection,
    now: Timestamp,
    org: OrgId,
    id: SecretId,
) -> Result<bool, StoreError> {
    lock_secrets(tx, org)?;
    let Some(known) = find_secret(tx, org, id)? else { return Ok(false) };
    if known.disabled_at.is_some() {
        return Ok(true);
    }
    let moment = DbTime::from(now);
    diesel::update(table::table.find(DbId::from(id)))
        .set((
            table::is_current.eq(false),
            table::demoted_at.eq(None::<DbTime>),
            table::disabled_at.eq(moment),
            table::updated_at.eq(moment),
        ))
        .execute(tx)?;
    if known.is_current
        && let Some(heir) = newest_enabled(tx, org)?
    {
        diesel::update(table::table.find(heir))
            .set((
                table::is_current.eq(true),
                table::demoted_at.eq(None::<DbTime>),
                table::updated_at.eq(moment),
            ))
            .execute(tx)?;
    }
    Ok(true)
}

/// Maximum demoted secrets that are remembered per organization. Bounds the signatures of a request.
const DEMOTED_KEPT: usize = 3;

fn demote_current(tx: &mut AnyConnection, now: Timestamp, org: OrgId) -> QueryResult<()> {
    let moment = DbTime::from(now);
    diesel::update(table::table.filter(table::org_id.eq(DbId::from(org))).filter(table::is_current))
        .set((table::is_current.eq(false), table::demoted_at.eq(moment), table::updated_at.eq(moment)))
        .execute(tx)
        .map(drop)
}

fn forget_demoted(tx: &mut AnyConnection, org: OrgId) -> QueryResult<()> {
    let demoted: Vec<DbId> = table::table
        .filter(table::org_id.eq(DbId::from(org)))
        .filter(table::demoted_at.is_not_null())
        .order_by((table::demoted_at.desc(), table::id.desc()))
        .select(table::id)
        .load(tx)?;
    for id in demoted.into_iter().skip(DEMOTED_KEPT) {
        diesel::update(table::table.find(id)).set(table::demoted_at.eq(None::<DbTime>)).execute(tx)?;
    }
    Ok(())
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = table, check_for_backend(MultiBackend))]
pub(crate) struct SecretRow {
    id: DbId,
    org_id: DbId,
    key_prefix: String,
    is_current: bool,
    label: Option<String>,
    disabled_at: Option<DbTime>,
    last_used_at: Option<DbTime>,
    created_at: DbTime,
    updated_at: DbTime,
}

impl From<SecretRow> for CallbackSecret {
    fn from(row: SecretRow) -> CallbackSecret {
        CallbackSecret {
            id: row.id.into(),
            org_id: row.org_id.into(),
            key_prefix: row.key_prefix,
            is_current: row.is_current,
            label: row.label,
            disabled_at: row.disabled_at.map(Timestamp::from),
            last_used_at: row.last_used_at.map(Timestamp::from),
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        }
    }
}

fn insert(tx: &mut AnyConnection, secret: &CallbackSecret, sealed: &Sealed) -> QueryResult<()> {
    diesel::insert_into(table::table)
        .values((
            table::id.eq(DbId::from(secret.id)),
            table::org_id.eq(DbId::from(secret.org_id)),
            table::key_prefix.eq(&secret.key_prefix),
            table::key_id.eq(&sealed.key_id),
            table::sealed.eq(&sealed.bytes),
            table::is_current.eq(secret.is_current),
            table::label.eq(&secret.label),
            table::created_at.eq(DbTime::from(secret.created_at)),
            table::updated_at.eq(DbTime::from(secret.updated_at)),
        ))
        .execute(tx)
        .map(drop)
}

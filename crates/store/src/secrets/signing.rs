//! Which secrets a request is signed with.

use std::time::Duration;

use contracts::{OrgId, SecretId, SigningSecret, Timestamp};
use diesel::prelude::*;

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::schema::signing_secrets as table;
use crate::secrets::keyring::{Keyring, OpenError, Sealed};

/// Returns the secret to fix on new deliveries of the organization.
pub(crate) fn current_secret(tx: &mut AnyConnection, org: OrgId) -> QueryResult<Option<SecretId>> {
    let current = table::table
        .filter(table::org_id.eq(DbId::from(org)))
        .filter(table::is_current)
        .select(table::id)
        .first::<DbId>(tx)
        .optional()?;
    Ok(current.map(SecretId::from))
}

/// An enabled secret that requests may be signed with, sealed.
pub struct ValidSecret {
    /// Its id.
    pub id: SecretId,
    /// Its organization.
    pub org_id: OrgId,
    /// Whether it is fixed on new deliveries.
    pub is_current: bool,
    /// When another secret was promoted in its place, if after the requested time.
    pub demoted_at: Option<Timestamp>,
    sealed: Sealed,
}

impl ValidSecret {
    /// Opens the secret for signing. An error is permanent for this keyring.
    pub fn open(&self, keyring: &Keyring) -> Result<SigningSecret, OpenError> {
        keyring.open(self.org_id, self.id, &self.sealed)
    }
}

/// Returns the enabled secrets of organizations that are current, were demoted after `demoted_after` (newest
/// first), or are named in `wanted`, in this order. Waits for no lock.
pub fn signing_secrets(
    tx: &mut AnyConnection,
    wanted: &[(OrgId, Option<SecretId>)],
    demoted_after: Timestamp,
) -> Result<Vec<ValidSecret>, StoreError> {
    type Row = (DbId, DbId, bool, Option<DbTime>, String, Vec<u8>);
    let columns =
        (table::id, table::org_id, table::is_current, table::demoted_at, table::key_id, table::sealed);
    let orgs: Vec<DbId> = wanted.iter().map(|(org, _)| DbId::from(*org)).collect();
    // One statement per index.
    let mut rows: Vec<Row> = table::table
        .filter(table::org_id.eq_any(&orgs))
        .filter(table::is_current)
        .select(columns)
        .load(tx)?;
    let demoted: Vec<Row> = table::table
        .filter(table::org_id.eq_any(&orgs))
        .filter(table::demoted_at.gt(DbTime::from(demoted_after)))
        .order_by((table::demoted_at.desc(), table::id.desc()))
        .select(columns)
        .load(tx)?;
    rows.extend(demoted);
    let is_found = |id: &SecretId| rows.iter().any(|(found, ..)| *found == DbId::from(*id));
    let others: Vec<DbId> =
        wanted.iter().filter_map(|(_, id)| *id).filter(|id| !is_found(id)).map(DbId::from).collect();
    if !others.is_empty() {
        let named: Vec<Row> = table::table
            .filter(table::id.eq_any(others))
            .filter(table::disabled_at.is_null())
            .select(columns)
            .load(tx)?;
        rows.extend(named);
    }
    let secret = |(id, org_id, is_current, demoted_at, key_id, bytes): Row| ValidSecret {
        id: id.into(),
        org_id: org_id.into(),
        is_current,
        demoted_at: demoted_at.map(Timestamp::from).filter(|at| *at > demoted_after),
        sealed: Sealed { key_id, bytes },
    };
    Ok(rows.into_iter().map(secret).collect())
}

/// Precision of `last_used_at`: the shortest interval between updates of one secret.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

/// Records that a secret was used for signing, unless that was recorded within the last minute.
pub fn note_secret_used(tx: &mut AnyConnection, now: Timestamp, id: SecretId) -> Result<(), StoreError> {
    let lately = DbTime::from(now - USE_NOTED_EVERY);
    diesel::update(table::table.find(DbId::from(id)))
        .filter(table::last_used_at.is_null().or(table::last_used_at.le(lately)))
        .set(table::last_used_at.eq(DbTime::from(now)))
        .execute(tx)?;
    Ok(())
}

/// Opens a secret. The inner error is permanent for this keyring; the outer one is the database's.
pub fn open_secret(
    tx: &mut AnyConnection,
    keyring: &Keyring,
    org: OrgId,
    id: SecretId,
) -> Result<Result<SigningSecret, OpenError>, StoreError> {
    let sealed = table::table
        .find(DbId::from(id))
        .filter(table::org_id.eq(DbId::from(org)))
        .select((table::key_id, table::sealed))
        .first::<(String, Vec<u8>)>(tx)
        .optional()?;
    let Some((key_id, bytes)) = sealed else { return Ok(Err(OpenError::NotFound)) };
    Ok(keyring.open(org, id, &Sealed { key_id, bytes }))
}

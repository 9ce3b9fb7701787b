//! Creates and reads organizations.

use contracts::{OrgId, Timestamp};
use diesel::prelude::*;

use crate::columns::{DbId, DbTime};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::schema::organizations;

/// The owner of runs, tokens and secrets.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Organization {
    pub id: OrgId,
    pub name: String,
    pub created_at: Timestamp,
}

/// Creates an organization.
pub fn create_organization(
    tx: &mut AnyConnection,
    now: Timestamp,
    name: &str,
) -> Result<Organization, StoreError> {
    let organization = Organization { id: OrgId::new(now), name: name.to_owned(), created_at: now };
    diesel::insert_into(organizations::table)
        .values((
            organizations::id.eq(DbId::from(organization.id)),
            organizations::name.eq(name),
            organizations::created_at.eq(DbTime::from(now)),
        ))
        .execute(tx)?;
    Ok(organization)
}

/// Returns the organization with this id.
pub fn find_organization(tx: &mut AnyConnection, id: OrgId) -> Result<Option<Organization>, StoreError> {
    let row: Option<(String, DbTime)> = organizations::table
        .find(DbId::from(id))
        .select((organizations::name, organizations::created_at))
        .first(tx)
        .optional()?;
    Ok(row.map(|(name, created_at)| Organization { id, name, created_at: created_at.into() }))
}

/// Returns the ids of all organizations.
pub fn organization_ids(tx: &mut AnyConnection) -> Result<Vec<OrgId>, StoreError> {
    let ids: Vec<DbId> =
        organizations::table.order_by(organizations::id).select(organizations::id).load(tx)?;
    Ok(ids.into_iter().map(OrgId::from).collect())
}

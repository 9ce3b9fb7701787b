//! Idempotency keys: a repeated request gets the earlier response and has no further effect.
//!
//! A key is taken in the transaction that accepts the request, and only if the response is a 2xx. A second
//! request with the same key waits for that transaction, then finds its result.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use contracts::{OrgId, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, Binary, Text};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::{AnyConnection, MultiBackend};
use crate::error::StoreError;
use crate::prepared::{column, prepared};
use crate::schema::idempotency_keys as table;

/// How long a key is kept (contract section 3).
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Keys deleted in one transaction, which takes a few milliseconds.
const FORGOTTEN_AT_ONCE: i64 = 1000;

/// An `Idempotency-Key` and a hash of its request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdempotencyKey {
    /// The key that the client chose.
    pub key: String,
    /// SHA-256 of the request's method, path, query and body, which must be the same in a repeated request.
    pub request_sha256: [u8; 32],
}

/// The record of a key and of the object that its first request created.
#[derive(Queryable, Selectable, Clone, Debug, PartialEq, Eq)]
#[diesel(table_name = table, check_for_backend(MultiBackend))]
pub(crate) struct KeyRecord {
    request_sha256: Vec<u8>,
    #[diesel(column_name = made_id)]
    pub(crate) id: DbId,
    pub(crate) answer: Option<String>,
}

impl KeyRecord {
    /// Whether `key` belongs to the same request.
    pub(crate) fn is_answer_to(&self, key: &IdempotencyKey) -> bool {
        self.request_sha256 == key.request_sha256
    }
}

/// Returns the records of the keys that exist.
pub(crate) fn find_keys(
    tx: &mut AnyConnection,
    now: Timestamp,
    keys: &[(OrgId, &IdempotencyKey)],
) -> QueryResult<HashMap<(OrgId, String), KeyRecord>> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    // Loads a few extra rows if organizations choose the same keys; callers look up the right ones in the
    // map.
    let rows: Vec<((DbId, String), KeyRecord)> = table::table
        .filter(table::org_id.eq_any(keys.iter().map(|(org, _)| DbId::from(*org))))
        .filter(table::idempotency_key.eq_any(keys.iter().map(|(_, key)| &key.key)))
        .filter(table::created_at.gt(DbTime::from(now - KEPT)))
        .select(((table::org_id, table::idempotency_key), KeyRecord::as_select()))
        .load(tx)?;
    Ok(rows.into_iter().map(|((org, key), made)| ((org.into(), key), made)).collect())
}

/// Takes keys for objects that this transaction is about to create, and returns the ids whose key it got.
/// Waits for any other transaction that has taken one of the keys. All transactions must take their keys in
/// the same order.
pub(crate) fn take_keys(
    tx: &mut AnyConnection,
    now: Timestamp,
    rows: &[(OrgId, &IdempotencyKey, DbId)],
) -> QueryResult<HashSet<DbId>> {
    let (moment, expired) = (DbTime::from(now), DbTime::from(now - KEPT));
    let taken: Vec<DbId> = match tx {
        AnyConnection::Postgres(pg) => prepared::<Id, _>(
            "INSERT INTO idempotency_keys (org_id, idempotency_key, request_sha256, made_id, created_at)
             SELECT r.*, ? FROM unnest(?, ?, ?, ?) AS r
             ON CONFLICT (org_id, idempotency_key) DO UPDATE
                 SET request_sha256 = excluded.request_sha256, made_id = excluded.made_id, answer = NULL,
                     created_at = excluded.created_at
                 WHERE idempotency_keys.created_at <= ?
             RETURNING made_id",
        )
        .bind::<Moment, _>(moment)
        .bind::<Array<Id>, _>(column(rows, |(org, ..)| DbId::from(*org)))
        .bind::<Array<Text>, _>(column(rows, |(_, key, _)| key.key.as_str()))
        .bind::<Array<Binary>, _>(column(rows, |(_, key, _)| &key.request_sha256[..]))
        .bind::<Array<Id>, _>(column(rows, |(.., made)| *made))
        .bind::<Moment, _>(expired)
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let mut taken = Vec::with_capacity(rows.len());
            for (org, key, made) in rows {
                let own: Option<DbId> = prepared::<Id, _>(
                    "INSERT INTO idempotency_keys (org_id, idempotency_key, request_sha256, made_id, created_at)
                     VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT (org_id, idempotency_key) DO UPDATE
                         SET request_sha256 = excluded.request_sha256, made_id = excluded.made_id,
                             answer = NULL, created_at = excluded.created_at
                         WHERE idempotency_keys.created_at <= ?
                     RETURNING made_id",
                )
                .bind::<Id, _>(DbId::from(*org))
                .bind::<Text, _>(key.key.as_str())
                .bind::<Binary, _>(&key.request_sha256[..])
                .bind::<Id, _>(*made)
                .bind::<Moment, _>(moment)
                .bind::<Moment, _>(expired)
                .get_result(sqlite)
                .optional()?;
                taken.extend(own);
            }
            taken
        }
    };
    Ok(taken.into_iter().collect())
}

/// Releases keys that this transaction has taken for objects that it did not create after all.
pub(crate) fn give_back(tx: &mut AnyConnection, keys: &[(OrgId, &IdempotencyKey)]) -> QueryResult<()> {
    for (org, key) in keys {
        diesel::delete(table::table.find((DbId::from(*org), &key.key))).execute(tx)?;
    }
    Ok(())
}

/// Stores the parts of the response that may change later.
pub(crate) fn keep_answer(
    tx: &mut AnyConnection,
    org: OrgId,
    key: &IdempotencyKey,
    answer: &str,
) -> QueryResult<()> {
    diesel::update(table::table.find((DbId::from(org), &key.key)))
        .set(table::answer.eq(answer))
        .execute(tx)
        .map(drop)
}

/// Deletes a batch of keys older than a day, and returns whether there may be more.
pub fn forget_idempotency_keys(tx: &mut AnyConnection, now: Timestamp) -> Result<bool, StoreError> {
    let mut old: Vec<(DbId, String)> = table::table
        .filter(table::created_at.le(DbTime::from(now - KEPT)))
        .order_by(table::created_at)
        .limit(FORGOTTEN_AT_ONCE)
        .select((table::org_id, table::idempotency_key))
        .load(tx)?;
    old.sort_unstable(); // in the order in which keys are taken
    for (org, key) in &old {
        diesel::delete(table::table.find((*org, key)))
            .filter(table::created_at.le(DbTime::from(now - KEPT))) // unless taken again in between
            .execute(tx)?;
    }
    Ok(i64::try_from(old.len()) == Ok(FORGOTTEN_AT_ONCE))
}

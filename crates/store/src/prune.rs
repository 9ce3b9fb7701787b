//! Removing deliveries that ended long ago, with their attempts.

use contracts::{DeliveryStatus, OrgId, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::page::Position;
use crate::prepared::prepared;
use crate::schema::{attempts, deliveries, erased_parts};

/// Deliveries that are next to each other in one index, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PruneRange {
    pub org_id: OrgId,
    pub status_code: DeliveryStatus,
    pub is_automatic: bool,
}

/// What one batch removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deliveries.
    pub deliveries: usize,
    /// Their attempts.
    pub attempts: usize,
    /// Behind which delivery the next batch begins; none when the range is done.
    pub behind: Option<Position>,
}

impl PruneRange {
    /// All ranges of an organization's deliveries that have ended.
    pub fn all_of(org_id: OrgId) -> impl Iterator<Item = PruneRange> {
        [DeliveryStatus::Succeeded, DeliveryStatus::Failed].into_iter().flat_map(move |status_code| {
            [true, false].map(|is_automatic| PruneRange { org_id, status_code, is_automatic })
        })
    }
}

/// Removes up to `limit` deliveries of a range that ended before `before`. Rows that somebody else has locked are
/// passed over: the next time they will be older still.
pub fn prune(
    tx: &mut AnyConnection,
    range: PruneRange,
    before: Timestamp,
    behind: Option<Position>,
    limit: usize,
) -> Result<Pruned, StoreError> {
    // A delivery ends after it was made, so `before` bounds both, and the index is over the making.
    let text = match tx {
        AnyConnection::Postgres(_) => {
            "SELECT id, created_at FROM deliveries
             WHERE org_id = ? AND status_code = ? AND is_automatic = ? AND (created_at, id) > (?, ?)
               AND created_at < ? AND completed_at < ?
             ORDER BY created_at, id LIMIT ? FOR UPDATE SKIP LOCKED"
        }
        AnyConnection::Sqlite(_) => {
            "SELECT id, created_at FROM deliveries
             WHERE org_id = ? AND status_code = ? AND is_automatic = ? AND (created_at, id) > (?, ?)
               AND created_at < ? AND completed_at < ?
             ORDER BY created_at, id LIMIT ?"
        }
    };
    let (begin, first) = match behind {
        Some(Position { created_at, id }) => (Time::from(created_at), Key(id)),
        None => (Time::from(Timestamp::from_micros(0)), Key(uuid::Uuid::nil())),
    };
    let rows: Vec<(Key, Time)> = prepared::<(Id, Moment), _>(text)
        .bind::<Id, _>(Key::from(range.org_id))
        .bind::<Text, _>(<&str>::from(range.status_code))
        .bind::<Bool, _>(range.is_automatic)
        .bind::<Moment, _>(begin)
        .bind::<Id, _>(first)
        .bind::<Moment, _>(Time::from(before))
        .bind::<Moment, _>(Time::from(before))
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(tx)?;
    let ids: Vec<Key> = rows.iter().map(|(id, _)| *id).collect();
    diesel::delete(erased_parts::table.filter(erased_parts::delivery_id.eq_any(&ids))).execute(tx)?;
    let attempts = diesel::delete(attempts::table.filter(attempts::delivery_id.eq_any(&ids))).execute(tx)?;
    let removed = diesel::delete(deliveries::table.filter(deliveries::id.eq_any(&ids))).execute(tx)?;
    let last = rows.last().filter(|_| rows.len() == limit);
    let behind = last.map(|(id, created_at)| Position { created_at: (*created_at).into(), id: id.0 });
    Ok(Pruned { deliveries: removed, attempts, behind })
}

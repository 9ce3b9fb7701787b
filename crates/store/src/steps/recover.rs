//! Recovering attempts whose dispatcher did not come back while their lease lasted.

use contracts::{DeliveryId, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt};
use engine::protection::{Protection, is_off};
use engine::{AttemptResult, Effect, HeldAttempt};

use crate::columns::{Id, Key, Moment, Time};
use crate::connect::AnyConnection;
use crate::error::RowsRefused;
use crate::prepared::{column, prepared};
use crate::steps::claim::{HeldRow, HeldSql, held, held_columns};
use crate::steps::finish::record;

/// Records up to `limit` attempts whose lease has ended, oldest first, as `settle` says, and returns what was recorded.
/// Rows that another session has locked are passed over: somebody else recovers them, or their result has come after all.
/// When recording is refused the error names all of them. `is_reversed` begins with those that ended last.
pub fn recover_leases(
    tx: &mut AnyConnection,
    now: Timestamp,
    limit: usize,
    stepped_over: &[DeliveryId],
    is_reversed: bool,
    mut settle: impl FnMut(&HeldAttempt) -> AttemptResult,
) -> Result<Vec<(HeldAttempt, AttemptResult, Effect)>, RowsRefused> {
    let expired = lock_expired(tx, now, limit, stepped_over, is_reversed)?;
    let results: Vec<AttemptResult> = expired.iter().map(&mut settle).collect();
    record(tx, now, &results.iter().collect::<Vec<_>>()).map_err(|error| RowsRefused {
        rows: expired.iter().map(|held| held.delivery_id).collect(),
        error,
    })?;
    let recorded = |(held, result)| (held, result, Effect::Recorded);
    Ok(expired.into_iter().zip(results).map(recorded).collect())
}

/// Attempts whose lease has ended, in an order.
macro_rules! expired {
    ($order:literal) => {
        concat!(
            "SELECT ",
            held_columns!(),
            " FROM deliveries d
              LEFT JOIN destinations h ON h.destination = d.destination AND h.probe_claim_id = d.claim_id
              WHERE d.claim_id IS NOT NULL AND d.wake_at <= ? AND d.id <> ALL (?) ",
            $order
        )
    };
}

fn lock_expired(
    tx: &mut AnyConnection,
    now: Timestamp,
    limit: usize,
    stepped_over: &[DeliveryId],
    is_reversed: bool,
) -> QueryResult<Vec<HeldAttempt>> {
    let ended_by = if is_off(Protection::Lease) { Time::MAX } else { now.into() };
    let rows: Vec<HeldRow> = match tx {
        AnyConnection::Postgres(pg) => prepared::<HeldSql, _>(match is_reversed {
            false => expired!("ORDER BY d.wake_at LIMIT ? FOR UPDATE OF d SKIP LOCKED"),
            true => expired!("ORDER BY d.wake_at DESC LIMIT ? FOR UPDATE OF d SKIP LOCKED"),
        })
        .bind::<Moment, _>(ended_by)
        .bind::<Array<Id>, _>(column(stepped_over, |id| Key::from(*id)))
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => prepared::<HeldSql, _>(concat!(
            "SELECT ",
            held_columns!(),
            " FROM deliveries d
              LEFT JOIN destinations h ON h.destination = d.destination AND h.probe_claim_id = d.claim_id
              WHERE d.claim_id IS NOT NULL AND d.wake_at <= ? ORDER BY d.wake_at LIMIT ?"
        ))
        .bind::<Moment, _>(ended_by)
        .bind::<BigInt, _>(i64::try_from(limit.saturating_add(stepped_over.len())).unwrap_or(i64::MAX))
        .load(sqlite)?,
    };
    let is_wanted = |held: &HeldAttempt| !stepped_over.contains(&held.delivery_id);
    Ok(rows.into_iter().map(held).filter(is_wanted).take(limit).collect())
}

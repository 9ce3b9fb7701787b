//! Recovers attempts whose dispatcher recorded no result before their lease ended.

use contracts::{DeliveryId, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt};
use engine::protection::{Protection, is_off};
use engine::{AttemptResult, Effect, HeldAttempt};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::finish::record;
use crate::deliveries::held::{HeldRow, HeldSql, RequestRow, RequestSql, held, held_columns};
use crate::deliveries::open::{WhenLocked, lock_open};
use crate::error::RowsRefused;
use crate::prepared::{column, prepared};

/// Records up to `limit` attempts whose lease has ended, oldest first, with the result from `settle`, and
/// returns the recorded attempts. Skips rows locked by another session: it recovers them, or records their
/// result after all. If the database refuses the batch, the error names all its rows. `is_reversed` starts
/// with the leases that ended last.
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
    let ids = || expired.iter().map(|held| held.delivery_id);
    let recorded = |tx: &mut AnyConnection| {
        let mut locked = lock_open(tx, ids(), WhenLocked::Wait)?; // already locked by this transaction
        record(tx, now, &results.iter().collect::<Vec<_>>(), &mut locked)
    };
    recorded(tx).map_err(|error| RowsRefused { rows: ids().collect(), error })?;
    let recorded = |(held, result)| (held, result, Effect::Recorded);
    Ok(expired.into_iter().zip(results).map(recorded).collect())
}

/// Selects attempts whose lease has ended, in the given order.
macro_rules! expired {
    ($order:literal) => {
        concat!(
            "SELECT ",
            held_columns!(),
            ", d.request_id, d.traceparent FROM open_deliveries o JOIN deliveries d ON d.id = o.id
              LEFT JOIN destinations h ON h.destination = o.destination AND h.probe_claim_id = o.claim_id
              WHERE o.claim_id IS NOT NULL AND o.wake_at <= ? AND o.id <> ALL (?) ",
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
    let ended_by = if is_off(Protection::Lease) { DbTime::MAX } else { now.into() };
    let rows: Vec<(HeldRow, RequestRow)> = match tx {
        AnyConnection::Postgres(pg) => prepared::<(HeldSql, RequestSql), _>(match is_reversed {
            false => expired!("ORDER BY o.wake_at LIMIT ? FOR UPDATE OF o SKIP LOCKED"),
            true => expired!("ORDER BY o.wake_at DESC LIMIT ? FOR UPDATE OF o SKIP LOCKED"),
        })
        .bind::<Moment, _>(ended_by)
        .bind::<Array<Id>, _>(column(stepped_over, |id| DbId::from(*id)))
        .bind::<BigInt, _>(i64::try_from(limit).unwrap_or(i64::MAX))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => prepared::<(HeldSql, RequestSql), _>(concat!(
            "SELECT ",
            held_columns!(),
            ", d.request_id, d.traceparent FROM open_deliveries o JOIN deliveries d ON d.id = o.id
              LEFT JOIN destinations h ON h.destination = o.destination AND h.probe_claim_id = o.claim_id
              WHERE o.claim_id IS NOT NULL AND o.wake_at <= ? ORDER BY o.wake_at LIMIT ?"
        ))
        .bind::<Moment, _>(ended_by)
        .bind::<BigInt, _>(i64::try_from(limit.saturating_add(stepped_over.len())).unwrap_or(i64::MAX))
        .load(sqlite)?,
    };
    let is_wanted = |held: &HeldAttempt| !stepped_over.contains(&held.delivery_id);
    Ok(rows.into_iter().map(|(row, request)| held(row, request)).filter(is_wanted).take(limit).collect())
}

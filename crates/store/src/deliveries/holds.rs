//! Holds, stored as rows of `destinations`. Only a destination that is held, or was until recently, has a
//! row.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use contracts::{Destination, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt};
use engine::protection::{Protection, is_off};
use engine::transition::Claiming;
use engine::{AttemptResult, HoldChange};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::prepared::prepared;
use crate::schema::destinations;

/// How long a row stays after its hold has ended, if no delivery waits that could be its probe.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// Maximum rows deleted at once.
const FORGOTTEN_AT_ONCE: i64 = 500;

/// A destination's row blocks every delivery but its probe if its hold ends after the returned time. That
/// includes all rows, unless the simulation has switched the protection off.
pub(super) fn held_beyond(now: Timestamp) -> DbTime {
    if is_off(Protection::Hold) {
        DbTime::MAX
    } else if is_off(Protection::Probe) {
        now.into()
    } else {
        DbTime::MIN
    }
}

/// Locks and returns the destinations whose hold has ended and whose probe may begin. Skips rows locked by
/// another session.
pub(super) fn lock_half_open(
    tx: &mut AnyConnection,
    now: Timestamp,
    wanted: &[Destination],
) -> QueryResult<HashSet<Destination>> {
    if wanted.is_empty() {
        return Ok(HashSet::new());
    }
    let (wanted, now) = (wanted.iter().map(|destination| destination.as_i64()), DbTime::from(now));
    let locked: Vec<i64> = match tx {
        AnyConnection::Postgres(pg) => prepared::<BigInt, _>(
            "SELECT destination FROM destinations
             WHERE destination = ANY (?) AND held_until <= ? AND (probing_until IS NULL OR probing_until <= ?)
             FOR UPDATE SKIP LOCKED",
        )
        .bind::<Array<BigInt>, _>(wanted.collect::<Vec<_>>())
        .bind::<Moment, _>(now)
        .bind::<Moment, _>(now)
        .load(pg)?,
        AnyConnection::Sqlite(_) => {
            let ended = destinations::held_until.le(now);
            let is_free = destinations::probing_until.is_null().or(destinations::probing_until.le(now));
            destinations::table
                .filter(destinations::destination.eq_any(wanted))
                .filter(ended)
                .filter(is_free.assume_not_null())
                .select(destinations::destination)
                .load(tx)?
        }
    };
    Ok(locked.into_iter().map(Destination::from).collect())
}

/// Locks the rows of the destinations that results hold or open, in order as every batch does. Returns the
/// destinations that another session has locked.
pub(super) fn holds_locked_elsewhere(
    tx: &mut AnyConnection,
    results: &[AttemptResult],
) -> QueryResult<HashSet<Destination>> {
    let wanted = results.iter().filter(|result| result.hold != HoldChange::None);
    let wanted: Vec<i64> = wanted.map(|result| result.destination.as_i64()).collect();
    let AnyConnection::Postgres(pg) = tx else { return Ok(HashSet::new()) };
    if wanted.is_empty() {
        return Ok(HashSet::new());
    }
    let locked: Vec<i64> = prepared::<BigInt, _>(
        "SELECT destination FROM destinations WHERE destination = ANY (?) ORDER BY destination
         FOR UPDATE SKIP LOCKED",
    )
    .bind::<Array<BigInt>, _>(&wanted)
    .load(pg)?;
    let missing = wanted.into_iter().filter(|destination| !locked.contains(destination));
    let there: Vec<i64> = destinations::table
        .filter(destinations::destination.eq_any(missing))
        .select(destinations::destination)
        .load(tx)?;
    Ok(there.into_iter().map(Destination::from).collect())
}

/// Records that the probe of a locked destination is in flight.
pub(super) fn begin_probe(
    tx: &mut AnyConnection,
    claiming: &Claiming,
    destination: Destination,
) -> QueryResult<()> {
    diesel::update(destinations::table.find(destination.as_i64()))
        .set((
            destinations::probing_until.eq(DbTime::from(claiming.wake_at)),
            destinations::probe_claim_id.eq(DbId::from(claiming.claim_id)),
            destinations::updated_at.eq(DbTime::from(claiming.claimed_at)),
        ))
        .execute(tx)
        .map(drop)
}

/// The effect of a batch of results on one destination.
struct Change {
    org: DbId,
    held_until: Option<Timestamp>,
    /// The claims of ended probes, and whether each opens the destination. More than one if the lease of the
    /// first had ended.
    probes: Vec<(DbId, bool)>,
}

/// Writes the hold changes of results. Writes one destination at a time, in order, so that two batches can't
/// deadlock. There are few, because a held destination gets no further attempts.
pub(super) fn write_holds(
    tx: &mut AnyConnection,
    now: Timestamp,
    results: &[&AttemptResult],
) -> QueryResult<()> {
    if is_off(Protection::HoldRecorded) {
        return Ok(());
    }
    let mut changes: BTreeMap<Destination, Change> = BTreeMap::new();
    for result in results.iter().filter(|result| result.hold != HoldChange::None) {
        let change = changes.entry(result.destination).or_insert_with(|| Change {
            org: result.org_id.into(),
            held_until: None,
            probes: Vec::new(),
        });
        if let HoldChange::HoldUntil(until) = result.hold {
            change.held_until = change.held_until.max(Some(until));
        }
        if result.is_probe {
            change.probes.push((result.claim_id.into(), result.hold == HoldChange::Open));
        }
    }
    for (destination, change) in changes {
        write_change(tx, now, destination, &change)?;
    }
    Ok(())
}

fn write_change(
    tx: &mut AnyConnection,
    now: Timestamp,
    destination: Destination,
    change: &Change,
) -> QueryResult<()> {
    let (destination, now) = (destination.as_i64(), DbTime::from(now));
    if let Some(until) = change.held_until {
        prepared::<(), _>(
            "INSERT INTO destinations (destination, org_id, held_until, created_at, updated_at) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (destination) DO UPDATE SET
                 held_until = CASE WHEN excluded.held_until > destinations.held_until THEN excluded.held_until
                     ELSE destinations.held_until END,
                 updated_at = excluded.updated_at",
        )
        .bind::<BigInt, _>(destination)
        .bind::<Id, _>(change.org)
        .bind::<Moment, _>(DbTime::from(until))
        .bind::<Moment, _>(now)
        .bind::<Moment, _>(now)
        .execute(tx)?;
    }
    for (claim_id, opens) in &change.probes {
        // Unless another probe has replaced it. A hold set by another attempt in the meantime remains.
        let probe = destinations::table.find(destination).filter(destinations::probe_claim_id.eq(claim_id));
        if *opens && diesel::delete(probe.filter(destinations::held_until.le(now))).execute(tx)? > 0 {
            continue;
        }
        diesel::update(probe)
            .set((
                destinations::probing_until.eq(None::<DbTime>),
                destinations::probe_claim_id.eq(None::<DbId>),
                destinations::updated_at.eq(now),
            ))
            .execute(tx)?;
    }
    Ok(())
}

/// Deletes up to 500 rows whose hold ended an hour ago, with no probe in flight and no waiting delivery that
/// could be one. Returns the number of deleted rows.
pub fn forget_holds(tx: &mut AnyConnection, now: Timestamp) -> Result<usize, StoreError> {
    // Finds the waiting deliveries of a destination in the same way as the relay's walk.
    macro_rules! forget {
        ($is_one_of:literal, $end:literal) => {
            concat!(
                "DELETE FROM destinations WHERE destination ",
                $is_one_of,
                "SELECT h.destination FROM destinations h
                     WHERE h.held_until <= ? AND (h.probing_until IS NULL OR h.probing_until <= ?)
                       AND h.destination IS DISTINCT FROM (
                           SELECT o.destination FROM open_deliveries o
                           WHERE o.destination >= h.destination AND o.claim_id IS NULL
                           ORDER BY o.destination, o.wake_at LIMIT 1)
                     LIMIT ?",
                $end
            )
        };
    }
    let text = match tx {
        AnyConnection::Postgres(_) => forget!("= ANY (ARRAY (", " FOR UPDATE SKIP LOCKED))"),
        AnyConnection::Sqlite(_) => forget!("IN (", ")"),
    };
    let forgotten = prepared::<(), _>(text)
        .bind::<Moment, _>(DbTime::from(now - FORGOTTEN_AFTER))
        .bind::<Moment, _>(DbTime::from(now))
        .bind::<BigInt, _>(FORGOTTEN_AT_ONCE)
        .execute(tx)?;
    Ok(forgotten)
}

/// Moves the shown `next_attempt_at` of deliveries, each paired with its destination, to the end of the hold.
pub(crate) fn wait_for_holds(
    tx: &mut AnyConnection,
    mut waiting: Vec<(i64, &mut Option<DbTime>)>,
) -> QueryResult<()> {
    waiting.retain(|(_, next_attempt_at)| next_attempt_at.is_some());
    for waiting in waiting.chunks_mut(500) {
        let held: Vec<(i64, DbTime)> = destinations::table
            .filter(destinations::destination.eq_any(waiting.iter().map(|(destination, _)| *destination)))
            .select((destinations::destination, destinations::held_until))
            .load(tx)?;
        let held: HashMap<i64, DbTime> = held.into_iter().collect();
        for (destination, next_attempt_at) in waiting {
            **next_attempt_at = (**next_attempt_at).max(held.get(destination).copied());
        }
    }
    Ok(())
}

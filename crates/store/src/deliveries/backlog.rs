//! Measures how much there is to do, for metrics and for scaling. The cost is bounded.

use contracts::Timestamp;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};
use engine::HoldState;

use crate::columns::{DbTime, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::due::walk;
use crate::error::StoreError;
use crate::prepared::prepared;
use crate::schema::{destinations, open_deliveries};

/// Maximum number of due deliveries that are counted.
pub const MOST_COUNTED: i64 = 10_000;
/// Maximum number of destinations that are examined if all those deliveries wait for held destinations.
const MOST_DESTINATIONS: usize = 256;

/// What there is to do in the whole installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Number of due deliveries that no dispatcher has claimed, except those to held destinations, counted up
    /// to [`MOST_COUNTED`].
    pub due: u64,
    /// Since when the one that has waited longest is due.
    pub oldest_due_at: Option<Timestamp>,
    /// Number of attempts that dispatchers hold, counted up to [`MOST_COUNTED`].
    pub in_flight: u64,
    /// Number of held destinations, counted up to [`MOST_COUNTED`].
    pub held_destinations: u64,
}

/// Measures the backlog at `now`. Deliveries whose doorbell may still come are not due yet.
pub fn backlog(tx: &mut AnyConnection, now: Timestamp) -> Result<Backlog, StoreError> {
    let at = DbTime::from(now);
    let (examined, due, oldest): (i64, i64, Option<DbTime>) =
        prepared::<(BigInt, BigInt, Nullable<Moment>), _>(
            "SELECT count(*), count(*) FILTER (WHERE h.destination IS NULL),
             min(w.next_attempt_at) FILTER (WHERE h.destination IS NULL)
         FROM (
             SELECT destination, next_attempt_at FROM open_deliveries
             WHERE claim_id IS NULL AND wake_at <= ? ORDER BY wake_at LIMIT ?
         ) AS w
         LEFT JOIN destinations h
             ON h.destination = w.destination AND (h.held_until > ? OR h.probing_until > ?)",
        )
        .bind::<Moment, _>(at)
        .bind::<BigInt, _>(MOST_COUNTED)
        .bind::<Moment, _>(at)
        .bind::<Moment, _>(at)
        .get_result(tx)?;
    let claimed = open_deliveries::table.filter(open_deliveries::claim_id.is_not_null());
    let in_flight = claimed.select(open_deliveries::wake_at).limit(MOST_COUNTED).load::<DbTime>(tx)?.len();
    let held = destinations::table.filter(destinations::held_until.gt(at)).select(destinations::destination);
    let held_destinations = held.limit(MOST_COUNTED).load::<i64>(tx)?.len();
    let counted = Backlog {
        due: u64::try_from(due).unwrap_or_default(),
        oldest_due_at: oldest.map(Timestamp::from),
        in_flight: in_flight as u64,
        held_destinations: held_destinations as u64,
    };
    if due > 0 || examined < MOST_COUNTED {
        return Ok(counted);
    }
    // Held destinations hide what may be due for others.
    let mut found = counted;
    for destination in walk(tx, now, None, MOST_DESTINATIONS)?.due {
        if destination.hold == HoldState::Open {
            let oldest: Option<Option<DbTime>> = open_deliveries::table
                .filter(open_deliveries::destination.eq(destination.destination.as_i64()))
                .filter(open_deliveries::claim_id.is_null())
                .order_by(open_deliveries::wake_at)
                .select(open_deliveries::next_attempt_at)
                .first(tx)
                .optional()?;
            let oldest = oldest.flatten().map(Timestamp::from);
            found.due += 1;
            found.oldest_due_at = [found.oldest_due_at, oldest].into_iter().flatten().min();
        }
    }
    Ok(found)
}

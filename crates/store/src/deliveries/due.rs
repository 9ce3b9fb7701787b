//! Finds destinations with due deliveries for a relay poll. The cost is bounded: it depends neither on the
//! size of the backlog nor on its destinations.

use contracts::{Destination, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Nullable};
use engine::{DueDestination, HoldState, RelayPlan, Seen};

use crate::columns::{DbTime, Moment};
use crate::connect::AnyConnection;
use crate::prepared::prepared;

/// Maximum due rows that [`by_time`] reads. If there are fewer, it has found every destination with due
/// deliveries.
const ROWS: i64 = 512;

/// The result of [`find_due`].
pub(super) struct Sight {
    /// In ascending order of destination.
    pub(super) due: Vec<DueDestination>,
    pub(super) seen: Seen,
}

type HoldSql = (Nullable<Moment>, Nullable<Moment>);
type HoldRow = (Option<DbTime>, Option<DbTime>);

fn hold((held_until, probing_until): HoldRow, now: Timestamp) -> HoldState {
    let row = held_until.map(|until| (until.into(), probing_until.map(Timestamp::from)));
    HoldState::of(row, now)
}

/// Returns the plan's targets if it has any. Otherwise reads by due time, which is cheap while few deliveries
/// are due. With a known backlog, or if there are at least [`ROWS`] due rows, walks the destinations from the
/// plan's cursor.
pub(super) fn find_due(tx: &mut AnyConnection, now: Timestamp, plan: &RelayPlan) -> QueryResult<Sight> {
    if !plan.targets.is_empty() {
        let seen = Seen { has_backlog: plan.has_backlog, walked_to: plan.cursor };
        // Holds are not read here: the statement that locks candidates excludes held destinations.
        let due = |target: &Destination| DueDestination { destination: *target, hold: HoldState::Open };
        return Ok(Sight { due: plan.targets.iter().map(due).collect(), seen });
    }
    if !plan.has_backlog {
        let (due, is_complete) = by_time(tx, now)?;
        if is_complete {
            return Ok(Sight { due, seen: Seen::default() });
        }
    }
    walk(tx, now, plan.cursor, plan.steps())
}

/// Returns the destinations of the rows that have been due longest, and whether these are all due rows.
fn by_time(tx: &mut AnyConnection, now: Timestamp) -> QueryResult<(Vec<DueDestination>, bool)> {
    let rows: Vec<(i64, i64, HoldRow)> = prepared::<(BigInt, BigInt, HoldSql), _>(
        "SELECT w.destination, w.number, h.held_until, h.probing_until
         FROM (
             SELECT destination, count(*) AS number FROM (
                 SELECT destination FROM open_deliveries
                 WHERE claim_id IS NULL AND wake_at <= ? ORDER BY wake_at LIMIT ?
             ) AS due GROUP BY destination
         ) AS w
         LEFT JOIN destinations h ON h.destination = w.destination
         ORDER BY w.destination",
    )
    .bind::<Moment, _>(DbTime::from(now))
    .bind::<BigInt, _>(ROWS)
    .load(tx)?;
    let is_complete = rows.iter().map(|(_, number, _)| number).sum::<i64>() < ROWS;
    let due = |(destination, _, row): (i64, i64, HoldRow)| DueDestination {
        destination: destination.into(),
        hold: hold(row, now),
    };
    Ok((rows.into_iter().map(due).collect(), is_complete))
}

/// Visits the next destinations after `cursor` that have waiting deliveries. Each step reads the next
/// destination's first index entry, whose time tells whether a delivery is due.
pub(super) fn walk(
    tx: &mut AnyConnection,
    now: Timestamp,
    cursor: Option<Destination>,
    at_most: usize,
) -> QueryResult<Sight> {
    let from = cursor.map_or(Some(i64::MIN), |cursor| cursor.as_i64().checked_add(1));
    let Some(from) = from else { return Ok(Sight { due: Vec::new(), seen: Seen::default() }) };
    let steps: Vec<(i64, DbTime, HoldRow)> = match tx {
        AnyConnection::Postgres(pg) => prepared::<(BigInt, Moment, HoldSql), _>(
            "WITH RECURSIVE walk AS (
                 (SELECT destination, wake_at, 1 AS step FROM open_deliveries
                  WHERE destination >= ? AND claim_id IS NULL
                  ORDER BY destination, wake_at LIMIT 1)
                 UNION ALL
                 SELECT o.destination, o.wake_at, walk.step + 1 FROM walk CROSS JOIN LATERAL (
                     SELECT destination, wake_at FROM open_deliveries
                     WHERE destination > walk.destination AND claim_id IS NULL
                     ORDER BY destination, wake_at LIMIT 1
                 ) AS o WHERE walk.step < ?
             )
             SELECT walk.destination, walk.wake_at, h.held_until, h.probing_until
             FROM walk LEFT JOIN destinations h ON h.destination = walk.destination
             ORDER BY walk.destination",
        )
        .bind::<BigInt, _>(from)
        .bind::<Integer, _>(i32::try_from(at_most).unwrap_or(i32::MAX))
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            let (mut steps, mut from) = (Vec::new(), Some(from));
            while let Some(next) = from.filter(|_| steps.len() < at_most) {
                let step: Option<(i64, DbTime, HoldRow)> = prepared::<(BigInt, Moment, HoldSql), _>(
                    "SELECT o.destination, o.wake_at, h.held_until, h.probing_until
                     FROM open_deliveries o LEFT JOIN destinations h ON h.destination = o.destination
                     WHERE o.destination >= ? AND o.claim_id IS NULL
                     ORDER BY o.destination, o.wake_at LIMIT 1",
                )
                .bind::<BigInt, _>(next)
                .get_result(sqlite)
                .optional()?;
                from = step.and_then(|(destination, ..)| destination.checked_add(1));
                steps.extend(step);
            }
            steps
        }
    };
    let last = steps.last().filter(|_| steps.len() == at_most);
    let walked_to = last.map(|(destination, ..)| Destination::from(*destination));
    let due = steps
        .iter()
        .filter(|(_, wake_at, _)| *wake_at <= DbTime::from(now))
        .map(|(destination, _, row)| DueDestination {
            destination: (*destination).into(),
            hold: hold(*row, now),
        })
        .collect();
    Ok(Sight { due, seen: Seen { has_backlog: walked_to.is_some(), walked_to } })
}

//! Claims due deliveries for the relay, shared among destinations. The plan makes the decisions between the
//! statements; this module only executes the statements.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use contracts::{ClaimId, DeliveryId, Destination, Timestamp};
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer};
use engine::transition::{self, Claiming, DOORBELL_GRACE};
use engine::{Candidate, Claimed, HeldAttempt, PollResult, RelayPlan, Share};

use crate::columns::{DbId, DbTime, Id, Moment};
use crate::connect::AnyConnection;
use crate::deliveries::due::find_due;
use crate::deliveries::held::{HeldRow, HeldSql, bind_claiming, claim_set, claimed_columns, with_facts};
use crate::deliveries::holds::{begin_probe, held_beyond, lock_half_open};
use crate::error::{RowsRefused, StoreError};
use crate::prepared::{column, prepared};

/// The attempts that a relay poll claimed, and the state for the next poll.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct DueClaim {
    pub claimed: Vec<Claimed>,
    pub poll: PollResult,
}

/// Claims due attempts: retries, first attempts that no doorbell claimed, and deliveries to destinations with
/// a row in `destinations`. Skips rows locked by another session. If the database refuses the claim itself,
/// the error names the rows chosen for it.
pub fn claim_due(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim_id: ClaimId,
    plan: &RelayPlan,
) -> Result<DueClaim, RowsRefused> {
    let sight = find_due(tx, now, plan)?;
    let shares = plan.share(&sight.due);
    let probes = lock_probes(tx, now, &shares.shares)?;
    let claimable: Vec<Share> = shares
        .shares
        .iter()
        .filter(|share| !share.is_probe || probes.contains(&share.destination))
        .copied()
        .collect();
    // Deliveries of a target do not wait for their doorbells, which arrived and were dropped for lack of
    // room.
    let wake_by = if plan.targets.is_empty() { now } else { now + DOORBELL_GRACE };
    let candidates = lock_candidates(tx, now, wake_by, &claimable, &plan.stepped_over)?;
    let selection = plan.select(&candidates);
    let claiming = transition::claimed(claim_id, now, lease);
    let claimed = claim_chosen(tx, &claiming, &selection.chosen, &probes)?;
    Ok(DueClaim { claimed, poll: plan.poll_result(&sight.due, &shares, &selection, sight.seen) })
}

/// Returns the destinations whose probe this transaction may begin. Of concurrent transactions, only one gets
/// each.
fn lock_probes(
    tx: &mut AnyConnection,
    now: Timestamp,
    shares: &[Share],
) -> QueryResult<HashSet<Destination>> {
    let probes = shares.iter().filter(|share| share.is_probe);
    lock_half_open(tx, now, &probes.map(|share| share.destination).collect::<Vec<_>>())
}

/// Locks due deliveries for each share, in the order of the shares, oldest first per destination. A share
/// that is not a probe gets no rows if its destination has got a row in `destinations` since the poll read
/// it.
fn lock_candidates(
    tx: &mut AnyConnection,
    now: Timestamp,
    wake_by: Timestamp,
    shares: &[Share],
    stepped_over: &[DeliveryId],
) -> QueryResult<Vec<Candidate>> {
    if shares.is_empty() {
        return Ok(Vec::new());
    }
    let (wake_by, due_by, held_beyond) = (DbTime::from(wake_by), DbTime::from(now), held_beyond(now));
    let attempts = |share: &Share| i64::try_from(share.attempts).unwrap_or(i64::MAX);
    let rows: Vec<CandidateRow> = match tx {
        // A range makes the planner use the index by destination. With an equality it might use the index by
        // time and read past the whole backlog of other destinations.
        AnyConnection::Postgres(pg) => prepared::<CandidateSql, _>(
            "SELECT d.id, w.destination, d.bytes, d.next_attempt_at
             FROM unnest(?, ?, ?) WITH ORDINALITY AS w (destination, attempts, is_probe, place)
             CROSS JOIN LATERAL (
                 SELECT id, payload_bytes AS bytes, wake_at, next_attempt_at FROM open_deliveries
                 WHERE destination >= w.destination AND (destination, wake_at) <= (w.destination, ?)
                   AND claim_id IS NULL
                   AND (next_attempt_at = created_at OR next_attempt_at <= ?) AND attempt_count < max_attempts
                   AND id <> ALL (?)
                 ORDER BY destination, wake_at LIMIT w.attempts FOR UPDATE SKIP LOCKED
             ) AS d
             WHERE w.is_probe OR NOT EXISTS (
                 SELECT 1 FROM destinations h WHERE h.destination = w.destination AND h.held_until > ?)
             ORDER BY w.place, d.wake_at",
        )
        .bind::<Array<BigInt>, _>(column(shares, |share| share.destination.as_i64()))
        .bind::<Array<BigInt>, _>(column(shares, attempts))
        .bind::<Array<Bool>, _>(column(shares, |share| share.is_probe))
        .bind::<Moment, _>(wake_by)
        .bind::<Moment, _>(due_by)
        .bind::<Array<Id>, _>(column(stepped_over, |id| DbId::from(*id)))
        .bind::<Moment, _>(held_beyond)
        .load(pg)?,
        AnyConnection::Sqlite(sqlite) => {
            // SQLite has one writer, so no row is locked by another session.
            let stepped_over: HashSet<DbId> = stepped_over.iter().map(|id| DbId::from(*id)).collect();
            let mut rows = Vec::new();
            for share in shares {
                let beside = i64::try_from(stepped_over.len()).unwrap_or(i64::MAX);
                let found: Vec<CandidateRow> = prepared::<CandidateSql, _>(
                    "SELECT id, destination, payload_bytes, next_attempt_at FROM open_deliveries
                     WHERE destination = ? AND claim_id IS NULL AND wake_at <= ?
                       AND (next_attempt_at = created_at OR next_attempt_at <= ?) AND attempt_count < max_attempts
                       AND (? OR NOT EXISTS (
                           SELECT 1 FROM destinations h
                           WHERE h.destination = open_deliveries.destination AND h.held_until > ?))
                     ORDER BY wake_at LIMIT ?",
                )
                .bind::<BigInt, _>(share.destination.as_i64())
                .bind::<Moment, _>(wake_by)
                .bind::<Moment, _>(due_by)
                .bind::<Bool, _>(share.is_probe)
                .bind::<Moment, _>(held_beyond)
                .bind::<BigInt, _>(attempts(share).saturating_add(beside))
                .load(sqlite)?;
                let found = found.into_iter().filter(|(id, ..)| !stepped_over.contains(id));
                rows.extend(found.take(share.attempts));
            }
            rows
        }
    };
    Ok(rows.into_iter().map(candidate).collect())
}

type CandidateSql = (Id, BigInt, Integer, Moment);
type CandidateRow = (DbId, i64, i32, DbTime);

fn candidate((id, destination, bytes, due_at): CandidateRow) -> Candidate {
    Candidate {
        delivery_id: id.into(),
        destination: destination.into(),
        bytes: u64::try_from(bytes).unwrap_or_default(),
        due_at: due_at.into(),
    }
}

/// Claims locked deliveries. A destination that is probed has at most one.
fn claim_chosen(
    tx: &mut AnyConnection,
    claiming: &Claiming,
    chosen: &[Candidate],
    probes: &HashSet<Destination>,
) -> Result<Vec<Claimed>, RowsRefused> {
    let is_probe = |destination: &Destination| probes.contains(destination);
    let claim = |tx: &mut AnyConnection| {
        for candidate in chosen.iter().filter(|candidate| is_probe(&candidate.destination)) {
            begin_probe(tx, claiming, candidate.destination)?;
        }
        write_claim(tx, claiming, chosen)
    };
    let refused = |error: StoreError| RowsRefused {
        rows: chosen.iter().map(|candidate| candidate.delivery_id).collect(),
        error,
    };
    let claimed = claim(tx).map_err(refused)?;
    let due: HashMap<DeliveryId, Timestamp> =
        chosen.iter().map(|candidate| (candidate.delivery_id, candidate.due_at)).collect();
    let completed = |claimed: Claimed| {
        let is_probe = is_probe(&claimed.held.destination);
        let due_at = due.get(&claimed.held.delivery_id).copied();
        Claimed { held: HeldAttempt { is_probe, ..claimed.held }, due_at, ..claimed }
    };
    Ok(claimed.into_iter().map(completed).collect())
}

fn write_claim(
    tx: &mut AnyConnection,
    claiming: &Claiming,
    chosen: &[Candidate],
) -> Result<Vec<Claimed>, StoreError> {
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<HeldRow> = match tx {
        AnyConnection::Postgres(pg) => {
            let text = concat!(
                "UPDATE open_deliveries SET ",
                claim_set!(),
                " WHERE id = ANY (?) RETURNING ",
                claimed_columns!()
            );
            let ids = column(chosen, |candidate| DbId::from(candidate.delivery_id));
            bind_claiming(prepared::<HeldSql, _>(text), claiming).bind::<Array<Id>, _>(ids).load(pg)?
        }
        AnyConnection::Sqlite(sqlite) => {
            let text = concat!(
                "UPDATE open_deliveries SET ",
                claim_set!(),
                " WHERE id = ? RETURNING ",
                claimed_columns!()
            );
            let mut rows = Vec::with_capacity(chosen.len());
            for candidate in chosen {
                let statement = bind_claiming(prepared::<HeldSql, _>(text), claiming);
                rows.push(statement.bind::<Id, _>(DbId::from(candidate.delivery_id)).get_result(sqlite)?);
            }
            rows
        }
    };
    with_facts(tx, rows)
}

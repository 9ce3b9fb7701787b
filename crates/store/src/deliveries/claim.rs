//! Claims attempts for one dispatcher until their lease ends: those that doorbells name, or due ones.

use std::time::Duration;

use contracts::{ClaimId, Timestamp};
use diesel::prelude::*;
use engine::dispatch::{Claim, ClaimSource};
use engine::{Claimed, PollResult};

use crate::columns::{DbId, Id};
use crate::connect::AnyConnection;
use crate::deliveries::claim_jobs::claim_jobs;
use crate::deliveries::held::{HeldRow, HeldSql, held_columns, with_facts};
use crate::deliveries::relay::{DueClaim, claim_due};
use crate::error::{RowsRefused, StoreError};
use crate::prepared::prepared;

/// The result of a claim. All attempts were claimed at the same time, unless they are recovered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimResult {
    /// Attempts that the dispatcher now holds.
    pub claimed: Vec<Claimed>,
    /// Whether an earlier try claimed them and its commit succeeded after all.
    pub is_recovered: bool,
    /// The outcome of the relay's poll; `None` for doorbells and recovered claims.
    pub poll: Option<PollResult>,
}

/// Executes a claim. A retry first looks for rows that already carry the claim id, because the commit of an
/// earlier try may have succeeded.
pub fn claim(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim: &Claim,
) -> Result<ClaimResult, RowsRefused> {
    if claim.is_retry {
        let claimed = claimed_under(tx, claim.id)?;
        if !claimed.is_empty() {
            return Ok(ClaimResult { claimed, is_recovered: true, poll: None });
        }
    }
    let (claimed, poll) = match &claim.source {
        ClaimSource::Doorbells(jobs) => (claim_jobs(tx, now, lease, claim.id, jobs)?, None),
        ClaimSource::Relay(plan) => {
            let DueClaim { claimed, poll } = claim_due(tx, now, lease, claim.id, plan)?;
            (claimed, Some(poll))
        }
    };
    Ok(ClaimResult { claimed, is_recovered: false, poll })
}

/// Returns the attempts held under a claim id. After a commit with an unknown outcome, the dispatcher holds
/// exactly these.
pub fn claimed_under(tx: &mut AnyConnection, claim_id: ClaimId) -> Result<Vec<Claimed>, StoreError> {
    // `claim_id` has no index of its own; the lease index limits the scan to attempts in flight.
    let statement = prepared::<HeldSql, _>(concat!(
        "SELECT ",
        held_columns!(),
        " FROM open_deliveries o
         LEFT JOIN destinations h ON h.destination = o.destination AND h.probe_claim_id = o.claim_id
         WHERE o.claim_id IS NOT NULL AND o.claim_id = ?"
    ));
    let rows: Vec<HeldRow> = statement.bind::<Id, _>(DbId::from(claim_id)).load(tx)?;
    with_facts(tx, rows)
}

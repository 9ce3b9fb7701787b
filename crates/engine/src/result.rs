//! What an attempt came to, as finished data for the store.

use contracts::{AttemptId, AttemptNumber, ClaimId, DeliveryId, Destination, OrgId, Timestamp, Timing};

use crate::outcome::Failure;

/// What an attempt came to and what follows: everything the database needs to know of it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AttemptResult {
    pub delivery_id: DeliveryId,
    /// The claim the attempt was made under.
    pub claim_id: ClaimId,
    pub org_id: OrgId,
    pub destination: Destination,
    /// Whether it is its destination's probe that ends: another one may go then, whatever came of this one.
    pub is_probe: bool,
    /// What goes on record.
    pub record: AttemptRecord,
    /// What follows.
    pub settlement: Settlement,
    /// What it means for the whole destination.
    pub hold: HoldChange,
}

/// The record of one attempt.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AttemptRecord {
    pub id: AttemptId,
    pub number: AttemptNumber,
    /// `None` after a 2xx.
    pub failure: Option<Failure>,
    pub status_code: Option<i32>,
    pub response_body: Option<String>,
    pub response_time_ms: Option<i64>,
    pub timing: Timing,
    pub claimed_at: Timestamp,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The receiver answered 2xx.
    Succeeded,
    /// Another attempt at that time.
    RetryAt(Timestamp),
    /// No more attempts.
    Failed,
    /// The attempt was not sent, for a reason of ours: its number is free again, and it may be claimed from that time on.
    HandedBack(Timestamp),
}

/// What an attempt means for the hold of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldChange {
    /// Nothing.
    None,
    /// The destination is held until then.
    HoldUntil(Timestamp),
    /// The probe was answered otherwise, or failed: the hold is over.
    Open,
    /// The probe was not sent: another one may go.
    ProbeAgain,
}

/// What became of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Recorded, and the delivery moved on.
    Recorded,
    /// It came after its lease had ended and been recorded as `outcome_unknown`: that record now tells what
    /// happened. `closed` when it was a 2xx and the delivery was waiting, which has succeeded now; if a newer
    /// attempt is being made, its end closes the delivery.
    Late {
        /// Whether the delivery was closed by it.
        closed: bool,
    },
    /// The delivery, or the need for this result, is gone. Nothing was written.
    Dropped,
    /// Another session holds the delivery's row. Nothing was written: try again.
    Locked,
}

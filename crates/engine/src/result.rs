//! The result of an attempt, as finished data for the store.

use contracts::{AttemptId, AttemptNumber, ClaimId, DeliveryId, Destination, OrgId, Timestamp, Timing};

use crate::outcome::Failure;

/// The result of an attempt: everything the database needs to record it and to move its delivery on.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct AttemptResult {
    pub delivery_id: DeliveryId,
    /// The claim the attempt was made under.
    pub claim_id: ClaimId,
    pub org_id: OrgId,
    pub destination: Destination,
    /// Whether this attempt was its destination's probe. Whatever its outcome, another probe may be sent
    /// then.
    pub is_probe: bool,
    /// The attempt's record.
    pub record: AttemptRecord,
    /// What follows for the delivery.
    pub settlement: Settlement,
    /// What follows for the whole destination.
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
    /// Another attempt follows at this time.
    RetryAt(Timestamp),
    /// No more attempts follow.
    Failed,
    /// The attempt was not sent, for a local reason. Its number is free again, and it may be claimed from
    /// this time on.
    HandedBack(Timestamp),
}

/// How an attempt changes the hold of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldChange {
    /// No change.
    None,
    /// The destination is held until this time.
    HoldUntil(Timestamp),
    /// The probe ended without asking for a hold, or failed: the hold is over.
    Open,
    /// The probe was not sent: another one may be.
    ProbeAgain,
}

/// The effect of one result on the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Recorded, and the delivery moved on.
    Recorded,
    /// The result arrived after its lease had ended and had been recorded as `outcome_unknown`; it replaced
    /// that record. If it was a 2xx and the delivery was pending, the delivery has succeeded (`closed`). If a
    /// newer attempt is in flight, that attempt's end closes the delivery.
    Late {
        /// Whether the result closed the delivery.
        closed: bool,
    },
    /// The delivery is gone, or the result is no longer needed. Nothing was written.
    Dropped,
    /// Another session has locked the delivery's row. Nothing was written: retry.
    Locked,
}

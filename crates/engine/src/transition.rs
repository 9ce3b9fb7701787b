//! All transitions between a delivery's states, as finished data for the store to write. Only this file
//! defines which columns change together.

use std::time::Duration;

use contracts::{AttemptNumber, ClaimId, DeliveryId, DeliveryStatus, FailureReason, Timestamp};

use crate::outcome::Failure;
use crate::protection::{Protection, is_off};
use crate::result::{AttemptResult, Settlement};

/// How long a new delivery is reserved for its doorbell before the relay claims it.
pub const DOORBELL_GRACE: Duration = Duration::from_secs(2);

/// The initial state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NewState {
    pub status: DeliveryStatus,
    pub next_attempt_at: Timestamp,
    pub wake_at: Timestamp,
}

/// Returns the state of a delivery accepted at `now`: due at once, and reserved for its doorbell until
/// `wake_at`.
pub fn accepted(now: Timestamp) -> NewState {
    NewState { status: DeliveryStatus::Pending, next_attempt_at: now, wake_at: now + DOORBELL_GRACE }
}

/// The claim of a pending delivery's next attempt, whose number is the attempt count plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Claiming {
    pub claim_id: ClaimId,
    pub claimed_at: Timestamp,
    /// The lease's end.
    pub wake_at: Timestamp,
}

/// Returns a claim made at `now` for one lease.
pub fn claimed(claim_id: ClaimId, now: Timestamp, lease: Duration) -> Claiming {
    Claiming { claim_id, claimed_at: now, wake_at: now + lease }
}

/// The state that a transition starts from. It does not apply to a delivery in any other state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Departure {
    pub status: DeliveryStatus,
    /// The claim of the attempt in flight; `None` while the delivery is pending.
    pub claim_id: Option<ClaimId>,
    pub least_attempts: AttemptNumber,
}

/// A change of a delivery's state. It removes the claim and sets `wake_at` to `next_attempt_at`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Transition {
    pub delivery_id: DeliveryId,
    pub from: Departure,
    pub status: DeliveryStatus,
    /// How many attempt numbers are freed.
    pub attempts_returned: AttemptNumber,
    pub next_attempt_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub failure: FailureChange,
    pub updated_at: Timestamp,
}

/// The change of a delivery's failure columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureChange {
    /// Leaves them unchanged.
    Keep,
    /// Sets them, to null for `None`.
    Set(Option<Failure>),
}

impl Transition {
    /// The transition after an attempt. `has_succeeded`: an earlier attempt has a late 2xx on record, so that
    /// no further attempt may follow.
    pub fn attempt_ended(result: &AttemptResult, has_succeeded: bool, now: Timestamp) -> Transition {
        let claim_id = (!is_off(Protection::Fencing)).then_some(result.claim_id);
        let departure = Departure { status: DeliveryStatus::Delivering, claim_id, least_attempts: 0 };
        let ended = |status, failure| {
            let failure = FailureChange::Set(failure);
            Transition::new(result.delivery_id, departure, status, failure, None, now)
        };
        let waits = |at, failure| {
            let status = DeliveryStatus::Pending;
            Transition::new(result.delivery_id, departure, status, failure, Some(at), now)
        };
        let failure = result.record.failure.clone();
        let transition = match result.settlement {
            _ if has_succeeded => ended(DeliveryStatus::Succeeded, None),
            Settlement::Succeeded => ended(DeliveryStatus::Succeeded, None),
            Settlement::Failed => ended(DeliveryStatus::Failed, failure),
            Settlement::RetryAt(at) => waits(at, FailureChange::Set(failure)),
            Settlement::HandedBack(at) => waits(at, FailureChange::Keep),
        };
        let attempts_returned = i32::from(matches!(result.settlement, Settlement::HandedBack(_)));
        Transition { attempts_returned, ..transition }
    }

    /// The transition of a pending delivery after a late 2xx.
    pub fn late_success(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let failure = FailureChange::Set(None);
        Transition::new(delivery_id, Departure::waiting(1), DeliveryStatus::Succeeded, failure, None, now)
    }

    /// The transition when a redelivery replaces a delivery that waits for a retry. A delivery without any
    /// attempt is not replaced.
    pub fn superseded(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "a redelivery took its place";
        Transition::given_up(delivery_id, Departure::waiting(1), FailureReason::Superseded, detail, now)
    }

    /// The transition of a pending delivery whose run is erased.
    pub fn erased(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "the run's data was erased";
        Transition::given_up(delivery_id, Departure::waiting(0), FailureReason::Erased, detail, now)
    }

    /// The transition of a pending delivery that a client withdraws, with or without earlier attempts.
    pub fn withdrawn(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "a client withdrew it";
        Transition::given_up(delivery_id, Departure::waiting(0), FailureReason::Withdrawn, detail, now)
    }

    /// Returns whether the transition applies to a delivery with this status, claim and number of attempts.
    pub fn departs_from(
        &self,
        status: DeliveryStatus,
        claim_id: Option<ClaimId>,
        attempts: AttemptNumber,
    ) -> bool {
        let Departure { status: from, claim_id: claim, least_attempts } = self.from;
        status == from && claim.is_none_or(|claim| claim_id == Some(claim)) && attempts >= least_attempts
    }

    fn given_up(
        delivery_id: DeliveryId,
        from: Departure,
        reason: FailureReason,
        detail: &str,
        now: Timestamp,
    ) -> Transition {
        let failure = FailureChange::Set(Some(Failure { reason, detail: detail.to_owned() }));
        Transition::new(delivery_id, from, DeliveryStatus::Failed, failure, None, now)
    }

    fn new(
        delivery_id: DeliveryId,
        from: Departure,
        status: DeliveryStatus,
        failure: FailureChange,
        next_attempt_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Transition {
        let completed_at = next_attempt_at.is_none().then_some(now);
        Transition {
            delivery_id,
            from,
            status,
            attempts_returned: 0,
            next_attempt_at,
            completed_at,
            failure,
            updated_at: now,
        }
    }
}

impl Departure {
    fn waiting(least_attempts: AttemptNumber) -> Departure {
        Departure { status: DeliveryStatus::Pending, claim_id: None, least_attempts }
    }
}

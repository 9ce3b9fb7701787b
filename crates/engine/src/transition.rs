//! Every way a delivery leaves a state, as finished data that the store writes. Only this file knows which columns
//! move together.

use std::time::Duration;

use contracts::{AttemptNumber, ClaimId, DeliveryId, DeliveryStatus, FailureReason, Timestamp};

use crate::outcome::Failure;
use crate::protection::{Protection, is_off};
use crate::result::{AttemptResult, Settlement};

/// How long a new delivery is left to its doorbell before the relay takes it.
pub const DOORBELL_GRACE: Duration = Duration::from_secs(2);

/// A delivery's state when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NewState {
    pub status: DeliveryStatus,
    pub next_attempt_at: Timestamp,
    pub wake_at: Timestamp,
}

/// A delivery accepted at `now` is due at once; the relay leaves it to its doorbell for a moment.
pub fn accepted(now: Timestamp) -> NewState {
    NewState { status: DeliveryStatus::Pending, next_attempt_at: now, wake_at: now + DOORBELL_GRACE }
}

/// A waiting delivery whose next attempt is claimed: its number is the count plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Claiming {
    pub claim_id: ClaimId,
    pub claimed_at: Timestamp,
    /// The lease's end.
    pub wake_at: Timestamp,
}

/// Claims at `now`, for one lease.
pub fn claimed(claim_id: ClaimId, now: Timestamp, lease: Duration) -> Claiming {
    Claiming { claim_id, claimed_at: now, wake_at: now + lease }
}

/// The state that a transition leaves. A delivery in another one is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Departure {
    pub status: DeliveryStatus,
    /// The claim it is being delivered under; `None` while it waits.
    pub claim_id: Option<ClaimId>,
    pub least_attempts: AttemptNumber,
}

/// A delivery leaves a state. Afterwards no claim is on it; `wake_at` is `next_attempt_at`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Transition {
    pub delivery_id: DeliveryId,
    pub from: Departure,
    pub status: DeliveryStatus,
    /// How many attempt numbers become free again.
    pub attempts_returned: AttemptNumber,
    pub next_attempt_at: Option<Timestamp>,
    pub completed_at: Option<Timestamp>,
    pub failure: FailureChange,
    pub updated_at: Timestamp,
}

/// What becomes of a delivery's failure columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureChange {
    /// They stay.
    Keep,
    /// They become these, or null.
    Set(Option<Failure>),
}

impl Transition {
    /// After an attempt. `has_succeeded` says that an earlier attempt has a 2xx on record all the same, come late: then
    /// no other attempt may follow.
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

    /// A 2xx came late, for a delivery that waits.
    pub fn late_success(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let failure = FailureChange::Set(None);
        Transition::new(delivery_id, Departure::waiting(1), DeliveryStatus::Succeeded, failure, None, now)
    }

    /// A redelivery takes the place of one that waits for its retry: not of one that was never tried.
    pub fn superseded(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "a redelivery took its place";
        Transition::given_up(delivery_id, Departure::waiting(1), FailureReason::Superseded, detail, now)
    }

    /// The run of a waiting delivery is erased.
    pub fn erased(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "the run's data was erased";
        Transition::given_up(delivery_id, Departure::waiting(0), FailureReason::Erased, detail, now)
    }

    /// A client withdraws a waiting delivery, tried or not.
    pub fn withdrawn(delivery_id: DeliveryId, now: Timestamp) -> Transition {
        let detail = "a client withdrew it";
        Transition::given_up(delivery_id, Departure::waiting(0), FailureReason::Withdrawn, detail, now)
    }

    /// Whether a delivery in that state, under that claim and with so many attempts, is moved by it.
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

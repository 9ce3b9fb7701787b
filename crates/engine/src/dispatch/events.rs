//! The vocabulary between the machine and its driver: what happened ([`Event`]), and what to do ([`Action`]).

use std::time::Duration;

use contracts::{ClaimId, DeliveryId, Job, Timestamp};

use crate::fairness::{PollResult, RelayPlan};
use crate::lease::{Claimed, HeldAttempt};
use crate::outcome::{LocalFailure, Measured, Outcome};
use crate::result::{AttemptResult, Effect};
use crate::retry::RetryPolicy;
use crate::settle::random_id_and_jitter;

/// The limits of a dispatcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most attempts in progress at once, including those whose result is not recorded yet.
    pub max_in_flight: usize,
    /// The most payload bytes in flight. A single larger payload is sent alone.
    pub max_in_flight_bytes: u64,
    /// The most attempts in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// How long a claimed attempt belongs to this dispatcher. Longer than `timeout`.
    pub lease: Duration,
    /// The timeout of one attempt.
    pub timeout: Duration,
    /// The retry policy.
    pub retry: RetryPolicy,
}

/// The current time on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for leases and waits.
    pub monotonic: Duration,
    /// The wall clock, which follows the database's.
    pub clock: Timestamp,
}

/// Identifies one attempt of this dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct AttemptKey {
    pub delivery_id: DeliveryId,
    pub claim_id: ClaimId,
}

impl HeldAttempt {
    /// Returns the attempt's key.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

impl AttemptResult {
    /// Returns the key of the attempt that has this result.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

/// An event that the driver reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Doorbells arrived.
    Doorbells(Vec<Doorbell>),
    /// The claim committed.
    Claimed {
        /// The claimed attempts.
        claimed: Vec<Claimed>,
        /// Whether an earlier try of the claim turned out to have committed.
        is_recovered: bool,
        /// The result of the relay's poll. `None` if the claim was by doorbells, or recovered.
        poll: Option<PollResult>,
    },
    /// The database refused the claim. Nothing was committed.
    ClaimRefused {
        /// The deliveries to be claimed, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is unavailable, or the claim's commit had an unknown outcome.
    ClaimUnknown,
    /// An attempt has ended.
    Ended {
        /// The attempt.
        key: AttemptKey,
        /// Its outcome.
        outcome: Outcome,
        /// Its measurements.
        measured: Measured,
    },
    /// A batch committed.
    Recorded {
        /// The batch's number.
        id: u64,
        /// The effect of each of its results, in order.
        effects: Vec<Effect>,
    },
    /// The database refused a batch. Nothing was committed.
    RecordRefused {
        /// The batch's number.
        id: u64,
        /// Whether the data violates a constraint, so that a retry can't help.
        is_violation: bool,
    },
    /// The database is unavailable, or a batch's commit had an unknown outcome.
    RecordUnknown {
        /// The batch's number.
        id: u64,
    },
    /// Expired leases were recorded.
    LeasesRecovered {
        /// Their number.
        count: usize,
    },
    /// The database refused to record expired leases.
    RecoveryRefused {
        /// The deliveries with these leases, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is unavailable.
    RecoveryUnknown,
    /// Time has passed.
    Tick,
    /// Stop claiming and finish the attempts in flight.
    Stop,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Claim in one transaction; at most one is in progress.
    Claim(Claim),
    /// Acknowledge these doorbells.
    Acknowledge(Vec<u64>),
    /// Return these doorbells unacknowledged, for other dispatchers.
    GiveBack(Vec<u64>),
    /// Send an attempt.
    Send {
        /// The attempt and its request.
        claimed: Box<Claimed>,
        /// The monotonic time before which it must start. Otherwise it is not sent.
        send_before: Duration,
    },
    /// Record results in one transaction.
    Record(Batch),
    /// Log a result that is finished.
    Report(Recorded),
    /// Record expired leases in one transaction; at most one is in progress.
    RecoverLeases(Recovery),
    /// Delete holds that are no longer needed.
    ForgetHolds,
    /// Take no more doorbells: the database is unavailable.
    Pause,
    /// Take doorbells again.
    Resume,
    /// Log that a delivery is skipped for a while because the database refuses to change it.
    StepOver {
        /// The delivery.
        delivery_id: DeliveryId,
        /// How long it is skipped.
        wait: Duration,
    },
    /// Log that attempts can't be sent for this local reason.
    Trouble(LocalFailure),
    /// Log that this reason no longer applies.
    TroubleOver(LocalFailure),
    /// The dispatcher has stopped, with nothing left to do.
    Stopped,
}

/// A claim to make in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The claim's id, the same in every try of this claim and unique to it.
    pub id: ClaimId,
    /// The source of the claim's attempts.
    pub source: ClaimSource,
    /// Whether an earlier try may have committed. Attempts already under this id then belong to this
    /// dispatcher.
    pub is_retry: bool,
}

/// The source of a claim's attempts.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimSource {
    /// The attempts that doorbells ask for.
    Doorbells(Vec<Job>),
    /// The deliveries due in the database.
    Relay(RelayPlan),
}

/// A doorbell, identified to the driver by its token.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Doorbell {
    pub token: u64,
    pub job: Job,
}

/// Results to record in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The batch's number, for the event that reports its end.
    pub id: u64,
    /// At most one result per delivery.
    pub results: Vec<AttemptResult>,
}

/// A result that is recorded or given up.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Recorded {
    pub result: AttemptResult,
    /// `None`: the database refuses it permanently. Its attempt will be recorded as `outcome_unknown`.
    pub effect: Option<Effect>,
}

/// A transaction that records expired leases.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// The most leases to record.
    pub limit: usize,
    /// Deliveries to skip because the database recently refused them.
    pub stepped_over: Vec<DeliveryId>,
    /// Whether to begin with the leases that ended last, because those that ended first can't be read.
    pub is_reversed: bool,
    pub(super) retry: RetryPolicy,
    pub(super) rng: fastrand::Rng,
}

impl Recovery {
    /// Settles one of the attempts with an expired lease.
    pub fn settle(&mut self, held: &HeldAttempt, now: Timestamp) -> AttemptResult {
        let (id, jitter_unit) = random_id_and_jitter(&mut self.rng, now);
        self.retry.settle_lost(held, id, now, jitter_unit)
    }
}

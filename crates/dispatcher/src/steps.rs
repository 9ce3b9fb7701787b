//! The protocol's steps: each is one transaction's work, or one decision. The loops around them only call them, over
//! and over; a simulation calls the same steps in every order that failures can bring about.

use std::time::Duration;

use contracts::{AttemptId, ClaimId, FailureReason, Job, Timestamp};
use egress::{Policy, TargetUrl};
use store::{
    AnyConnection, AttemptRecord, Claimed, Finished, HeldAttempt, StoreError, claim_due, claim_jobs,
    claimed_under, expired_leases,
};

use crate::BATCH;
use crate::outcome::Outcome;
use crate::settle::{RetryPolicy, settle};

/// Where the next batch of attempts comes from.
#[derive(Clone, Debug)]
pub enum Work {
    /// What doorbells ask for.
    Doorbells(Vec<Job>),
    /// What is due in the database: at most so many attempts.
    Relay {
        /// The free slots.
        room: usize,
    },
}

/// What a claim found. All of it was claimed at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Attempts that are ours to make.
    pub claimed: Vec<Claimed>,
    /// Attempts that nobody finished while their lease lasted.
    pub expired: Vec<HeldAttempt>,
    /// Whether an earlier try's commit turns out to have come through: the leases count from that one.
    pub by_earlier_try: bool,
}

/// Claims in one transaction. `claim_id` is the same in every try of one claim and in no other; from the second try
/// on, which is made when the first one's commit may have come through, what carries it already is ours.
pub fn claim(
    tx: &mut AnyConnection,
    now: Timestamp,
    lease: Duration,
    claim_id: ClaimId,
    work: &Work,
    is_another_try: bool,
) -> Result<Found, StoreError> {
    if is_another_try {
        let claimed = claimed_under(tx, claim_id)?;
        if !claimed.is_empty() {
            return Ok(Found { claimed, expired: Vec::new(), by_earlier_try: true });
        }
    }
    let (claimed, expired) = match work {
        Work::Doorbells(jobs) => (claim_jobs(tx, now, lease, claim_id, jobs)?, Vec::new()),
        Work::Relay { room } => {
            let expired = expired_leases(tx, now, BATCH)?;
            (claim_due(tx, now, lease, claim_id, *room)?, expired)
        }
    };
    Ok(Found { claimed, expired, by_earlier_try: false })
}

/// For how long an attempt is ours, on the clock's monotonic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    end: Duration,
}

impl Lease {
    /// A lease counted from `since`, a moment before its claim was begun: it ends here no later than in the database.
    pub fn since(since: Duration, lease: Duration) -> Lease {
        Lease { end: since + lease }
    }

    /// What is left, at `now` and `monotonic`, of a lease that turns out to have been given at `claimed_at`, in a try that
    /// was over at `tried_by` of the monotonic time. So it ends in time even if the database's clock has been set since.
    pub fn given_at(
        claimed_at: Timestamp,
        lease: Duration,
        now: Timestamp,
        monotonic: Duration,
        tried_by: Duration,
    ) -> Lease {
        let by_the_clock = monotonic + (claimed_at + lease).since(now);
        Lease { end: by_the_clock.min(tried_by + lease) }
    }

    /// By when a request with that budget must have been begun, for it to be over while the attempt is still ours.
    pub fn send_before(self, budget: Duration) -> Duration {
        self.end.saturating_sub(budget)
    }
}

/// What is sent to nobody: a URL that is none, or an address that may not be called.
pub fn refuse(callback_url: &str, policy: &Policy) -> Result<TargetUrl, Outcome> {
    let target = TargetUrl::parse(callback_url)
        .map_err(|error| Outcome::failed(FailureReason::InvalidUrl, error.to_string()))?;
    match policy.judge_url(&target) {
        Ok(()) => Ok(target),
        Err(refused) => Err(Outcome::failed(FailureReason::BlockedAddress, refused.to_string())),
    }
}

/// What the database is told of an attempt that came to `outcome`. `chance` is a random number from -1 to 1.
pub fn finished(
    held: &HeldAttempt,
    outcome: Outcome,
    elapsed: Option<Duration>,
    retry: &RetryPolicy,
    now: Timestamp,
    chance: f64,
) -> Finished {
    let (failure, settlement) = settle(&outcome, held.attempt, held.max_attempts, retry, now, chance);
    let answer = match outcome {
        Outcome::Answered(answer) => Some(answer),
        Outcome::Failed(_) => None,
    };
    Finished {
        delivery_id: held.delivery_id,
        claim_id: held.claim_id,
        record: AttemptRecord {
            id: AttemptId::new(now),
            number: held.attempt,
            failure,
            status_code: answer.as_ref().map(|answer| i32::from(answer.status)),
            response_body: answer.map(|answer| answer.body),
            response_time_ms: elapsed.map(|elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)),
            claimed_at: held.claimed_at,
        },
        settlement,
    }
}

/// What the database is told of an attempt that nobody finished while its lease lasted.
pub fn lost(held: &HeldAttempt, retry: &RetryPolicy, now: Timestamp, chance: f64) -> Finished {
    let detail = "the dispatcher stopped or stalled during the attempt; it may have reached the receiver";
    let outcome = Outcome::failed(FailureReason::OutcomeUnknown, detail);
    finished(held, outcome, None, retry, now, chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many tries came before the one that came through, its attempts have their whole lease.
    #[test]
    fn a_lease_found_later_ends_when_the_database_says() {
        let (lease, claimed_at) = (Duration::from_secs(60), Timestamp::from_micros(1_000_000_000));
        let found = |after: u64| {
            let now = claimed_at + Duration::from_secs(after);
            let tried_by = Duration::from_secs(501);
            Lease::given_at(claimed_at, lease, now, Duration::from_secs(500 + after), tried_by)
        };
        assert_eq!(found(0).send_before(Duration::from_secs(10)), Duration::from_secs(550));
        assert_eq!(found(20), found(0));
        // Found at 570 s: it is over, and not sent any more.
        assert_eq!(found(70).send_before(Duration::ZERO), Duration::from_secs(561));
    }

    #[test]
    fn a_lease_found_later_is_none_the_longer_for_a_clock_set_back() {
        let (lease, claimed_at) = (Duration::from_secs(60), Timestamp::from_micros(1_000_000_000));
        let an_hour_before = claimed_at - Duration::from_secs(3_600);
        let (found, tried_by) = (Duration::from_secs(530), Duration::from_secs(501));
        let lease = Lease::given_at(claimed_at, lease, an_hour_before, found, tried_by);
        assert_eq!(lease.send_before(Duration::ZERO), Duration::from_secs(561));
    }
}

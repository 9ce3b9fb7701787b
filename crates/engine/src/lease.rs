//! Until when an attempt is ours, and when a send may begin.

use std::time::Duration;

use bytes::Bytes;
use contracts::{AttemptNumber, ClaimId, DeliveryId, Destination, OrgId, RunId, SecretId, Timestamp};

use crate::protection::{Protection, is_off};

/// An attempt that some dispatcher holds: numbered, leased, under a claim id.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct HeldAttempt {
    pub delivery_id: DeliveryId,
    pub org_id: OrgId,
    pub run_id: RunId,
    pub destination: Destination,
    pub attempt: AttemptNumber,
    pub max_attempts: AttemptNumber,
    /// The API request that asked for the delivery.
    pub request_id: String,
    pub claim_id: ClaimId,
    pub claimed_at: Timestamp,
    /// Whether it is the one attempt that goes first when its destination's hold has ended.
    pub is_probe: bool,
}

/// An attempt that is ours to make, and what to send.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Claimed {
    pub held: HeldAttempt,
    pub callback_url: String,
    /// The exact bytes to sign and send.
    pub payload: Bytes,
    pub signing_secret_id: Option<SecretId>,
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

    /// What is left, at `now` and `monotonic`, of a lease that turns out to have been given at `claimed_at`, in a try
    /// that was over at `tried_by` of the monotonic time. So it ends in time even if the database's clock has been set
    /// since.
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

/// The time within which a request that has begun is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    write_before: Duration,
}

impl SendWindow {
    /// Begins a request with that budget at `now` of the monotonic time. `None`: it is too late to begin, as its budget
    /// could outlive the lease.
    pub fn begin(now: Duration, send_before: Duration, budget: Duration) -> Option<SendWindow> {
        (now < send_before).then_some(SendWindow { write_before: now.saturating_add(budget) })
    }

    /// Whether the request may still be written. Ask in the step that writes it: the process may have been stopped since
    /// it began.
    pub fn may_write(self, now: Duration) -> bool {
        now < self.write_before || is_off(Protection::LateWrite)
    }
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

    #[test]
    fn a_request_is_begun_and_written_in_time_or_not_at_all() {
        let second = Duration::from_secs;
        assert_eq!(SendWindow::begin(second(50), second(50), second(10)), None);
        let window = SendWindow::begin(second(49), second(50), second(10)).unwrap();
        assert!(window.may_write(second(58)) && !window.may_write(second(59)));
    }
}

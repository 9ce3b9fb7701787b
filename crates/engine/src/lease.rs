//! Leases of claimed attempts, and the time limits of a send.

use std::time::Duration;

use bytes::Bytes;
use contracts::{
    AttemptNumber, ClaimId, DeliveryId, Destination, OrgId, RequestContext, RunId, SecretId, Timestamp,
};

use crate::protection::{Protection, is_off};

/// An attempt held by a dispatcher: numbered, leased, and under a claim id.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct HeldAttempt {
    pub delivery_id: DeliveryId,
    pub org_id: OrgId,
    pub run_id: RunId,
    pub destination: Destination,
    pub attempt: AttemptNumber,
    pub max_attempts: AttemptNumber,
    /// Whether the run's end created the delivery, not a client.
    pub is_automatic: bool,
    /// When the delivery was accepted.
    pub created_at: Timestamp,
    /// The API request that asked for the delivery.
    pub request: RequestContext,
    pub claim_id: ClaimId,
    pub claimed_at: Timestamp,
    /// Whether it is the probe: the single attempt sent first after its destination's hold has ended.
    pub is_probe: bool,
}

/// An attempt that this dispatcher has claimed, with the request to send.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Claimed {
    pub held: HeldAttempt,
    /// When the attempt was due; `None` if an earlier try claimed it.
    pub due_at: Option<Timestamp>,
    pub callback_url: String,
    /// The exact bytes to sign and send.
    pub payload: Bytes,
    pub signing_secret_id: Option<SecretId>,
}

/// A claimed attempt's lease, in monotonic time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    end: Duration,
}

impl Lease {
    /// Returns a lease counted from `since`, a time before its claim began. It ends here no later than in the
    /// database.
    pub fn since(since: Duration, lease: Duration) -> Lease {
        Lease { end: since + lease }
    }

    /// Returns the lease of a recovered claim that was made at `claimed_at`, as seen at `now` and
    /// `monotonic`. It ends at the latest one lease after `tried_by`, the monotonic time when that try was
    /// over, so it ends in time even if the database's clock has been set since.
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

    /// Returns the time before which a request with timeout `budget` must start, to end within the lease.
    pub fn send_before(self, budget: Duration) -> Duration {
        self.end.saturating_sub(budget)
    }
}

/// The time limit for writing a request that has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    write_before: Duration,
}

impl SendWindow {
    /// Starts a request with timeout `budget` at `now` in monotonic time. `None`: too late, the request could
    /// outlast the lease.
    pub fn begin(now: Duration, send_before: Duration, budget: Duration) -> Option<SendWindow> {
        (now < send_before).then_some(SendWindow { write_before: now.saturating_add(budget) })
    }

    /// Returns whether the request may still be written. Call it in the step that writes: the process may
    /// have been suspended since the request started.
    pub fn may_write(self, now: Duration) -> bool {
        now < self.write_before || is_off(Protection::LateWrite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attempts have their whole lease, regardless of the number of tries before the one that committed.
    #[test]
    fn a_recovered_lease_ends_at_the_databases_time() {
        let (lease, claimed_at) = (Duration::from_secs(60), Timestamp::from_micros(1_000_000_000));
        let found = |after: u64| {
            let now = claimed_at + Duration::from_secs(after);
            let tried_by = Duration::from_secs(501);
            Lease::given_at(claimed_at, lease, now, Duration::from_secs(500 + after), tried_by)
        };
        assert_eq!(found(0).send_before(Duration::from_secs(10)), Duration::from_secs(550));
        assert_eq!(found(20), found(0));
        // Found at 570 s: the lease is over, and nothing is sent.
        assert_eq!(found(70).send_before(Duration::ZERO), Duration::from_secs(561));
    }

    #[test]
    fn a_recovered_lease_is_not_extended_by_a_clock_set_back() {
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

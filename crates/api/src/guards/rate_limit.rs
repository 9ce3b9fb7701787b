//! Token buckets for the requests of each organization and the failed authentication of each client (contract
//! section 3, `RATE_LIMITED`).
//!
//! A bucket is one number, the time at which it will be full again, so a full bucket equals an absent one.
//! Buckets are per process: with several processes behind a load balancer, a client gets that many times the
//! rate.
//!
//! The `governor` crate covers only the arithmetic of [`Bucket`]. It has neither a store of bounded size, nor
//! a way to refund the token of a look-up that succeeded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Duration;

use contracts::OrgId;
use parking_lot::Mutex;

/// A rate limit: the size of a bucket, and how fast it refills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Time to refill one token.
    interval: Duration,
    /// Time to refill an empty bucket.
    capacity: Duration,
}

impl Rate {
    /// Allows `count` events per `period`, of which `burst` may occur at once.
    pub fn new(count: NonZeroU32, period: Duration, burst: NonZeroU32) -> Rate {
        let interval = period / count.get();
        Rate { interval, capacity: interval * burst.get() }
    }
}

/// The time at which the bucket will be full again. Any past time means that it is full.
#[derive(Clone, Copy, Default)]
struct Bucket(Duration);

impl Bucket {
    /// Takes a token, or returns how long to wait for one.
    fn take(&mut self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let full_again = self.0.max(now) + rate.interval;
        match full_again.checked_sub(now + rate.capacity) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                self.0 = full_again;
                Ok(())
            }
        }
    }

    fn give_back(&mut self, rate: Rate) {
        self.0 = self.0.saturating_sub(rate.interval);
    }

    fn is_full(self, now: Duration) -> bool {
        self.0 <= now
    }
}

/// Buckets by organization. There are at most as many as organizations, and outsiders can't create those.
pub(crate) struct RequestLimiter {
    rate: Option<Rate>,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    by_org: HashMap<OrgId, Bucket>,
    /// Number of buckets at which full ones are dropped: twice the number left by the last sweep, so that the
    /// cost per request stays low.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 1024;

impl RequestLimiter {
    pub(crate) fn new(rate: Option<Rate>) -> RequestLimiter {
        let buckets = Buckets { by_org: HashMap::new(), sweep_at: FIRST_SWEEP };
        RequestLimiter { rate, buckets: Mutex::new(buckets) }
    }

    /// Counts a request, or returns how long to wait.
    pub(crate) fn take(&self, org: OrgId, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut buckets = self.buckets.lock();
        if buckets.by_org.len() >= buckets.sweep_at {
            buckets.by_org.retain(|_, bucket| !bucket.is_full(now));
            buckets.sweep_at = FIRST_SWEEP.max(buckets.by_org.len() * 2);
        }
        buckets.by_org.entry(org).or_default().take(rate, now)
    }
}

/// Buckets by client in a table of fixed size, so that no number of addresses can exhaust the memory. Two
/// clients may share a bucket; outsiders can't find out which.
pub(crate) struct AuthFailureLimiter {
    rate: Option<Rate>,
    buckets: Mutex<Vec<Bucket>>,
    hasher: RandomState,
}

/// Number of buckets, 1 MiB in total.
const PEERS: usize = 1 << 16;

impl AuthFailureLimiter {
    pub(crate) fn new(rate: Option<Rate>) -> AuthFailureLimiter {
        let buckets = if rate.is_some() { vec![Bucket::default(); PEERS] } else { Vec::new() };
        AuthFailureLimiter { rate, buckets: Mutex::new(buckets), hasher: RandomState::new() }
    }

    /// Counts a failure, or returns how long to wait.
    pub(crate) fn take(&self, peer: IpAddr, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        self.buckets.lock()[self.place(peer)].take(rate, now)
    }

    /// Refunds a token: it was not a failure.
    pub(crate) fn give_back(&self, peer: IpAddr) {
        let Some(rate) = self.rate else { return };
        self.buckets.lock()[self.place(peer)].give_back(rate);
    }

    fn place(&self, peer: IpAddr) -> usize {
        let hash = self.hasher.hash_one(network(peer));
        usize::try_from(hash % PEERS as u64).unwrap_or_default()
    }
}

/// Returns the network of one client: an IPv4 address, or the /64 from which an IPv6 client picks its own.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Long after boot, like a real clock.
    const START: Duration = Duration::from_secs(1_000_000);

    fn rate(count: u32, burst: u32) -> Option<Rate> {
        Some(Rate::new(count.try_into().unwrap(), SECOND, burst.try_into().unwrap()))
    }

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    #[test]
    fn after_a_burst_the_rate_applies() {
        let requests = RequestLimiter::new(rate(4, 3));
        let at = |ms| START + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(requests.take(org(1), START), Ok(()));
        }
        assert_eq!(requests.take(org(1), START), Err(Duration::from_millis(250)));
        assert_eq!(requests.take(org(1), at(100)), Err(Duration::from_millis(150)));
        assert_eq!(requests.take(org(1), at(250)), Ok(()));
        assert_eq!(requests.take(org(1), at(250)), Err(Duration::from_millis(250)));
        assert_eq!(requests.take(org(2), at(250)), Ok(()), "another organization has a bucket of its own");
        // A long pause restores the burst, but no more.
        for _ in 0..3 {
            assert_eq!(requests.take(org(1), at(3_600_000)), Ok(()));
        }
        assert!(requests.take(org(1), at(3_600_000)).is_err());
    }

    #[test]
    fn the_rate_is_exact_in_the_long_run() {
        let requests = RequestLimiter::new(rate(50, 100));
        let passed =
            (0..600_000).filter(|ms| requests.take(org(1), START + Duration::from_millis(*ms)).is_ok());
        assert_eq!(passed.count(), 100 + 50 * 600 - 1);
    }

    #[test]
    fn buckets_of_inactive_organizations_are_dropped() {
        let requests = RequestLimiter::new(rate(1, 2));
        for n in 0..100_000 {
            let now = START + SECOND / 1000 * u32::try_from(n).unwrap();
            assert_eq!(requests.take(org(n), now), Ok(()));
        }
        let kept = requests.buckets.lock().by_org.len();
        assert!(kept <= 4 * FIRST_SWEEP, "{kept} buckets, of which 1,000 are not full");
    }

    #[test]
    fn a_refunded_failure_does_not_count() {
        let failures = AuthFailureLimiter::new(rate(1, 2));
        let peer = "203.0.113.7".parse().unwrap();
        for _ in 0..100 {
            assert_eq!(failures.take(peer, START), Ok(()));
            failures.give_back(peer);
        }
        assert_eq!(failures.take(peer, START), Ok(()));
        assert_eq!(failures.take(peer, START), Ok(()));
        assert_eq!(failures.take(peer, START), Err(SECOND));
        assert_eq!(failures.take(peer, START + SECOND), Ok(()));
    }

    #[test]
    fn an_ipv6_client_is_identified_by_its_64_bit_network() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:ffff::1"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let (requests, failures) = (RequestLimiter::new(None), AuthFailureLimiter::new(None));
        for _ in 0..100_000 {
            assert_eq!(requests.take(org(1), START), Ok(()));
            assert_eq!(failures.take(IpAddr::from([127, 0, 0, 1]), START), Ok(()));
        }
    }
}

//! Token buckets: requests of each organization, and failed authentication of each peer (contract section 3,
//! `RATE_LIMITED`).
//!
//! A bucket is one number, the moment at which it will be full again, so a bucket that is full is the same as none.
//! Each process has its own: with several of them behind a load balancer a client gets that many times the rate.
//!
//! Not the crate `governor`: of what is needed here it has the arithmetic of [`Bucket`], but neither a store that
//! stays small whoever calls, nor a way to give back what a look-up that found its token had taken.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use contracts::OrgId;

/// How often something may be done: a bucket's size, and how fast it fills again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From one token to the next.
    interval: Duration,
    /// From an empty bucket to a full one.
    capacity: Duration,
}

impl Rate {
    /// `count` times in each `period`, of which `burst` may come at once.
    pub fn new(count: NonZeroU32, period: Duration, burst: NonZeroU32) -> Rate {
        let interval = period / count.get();
        Rate { interval, capacity: interval * burst.get() }
    }
}

/// The moment at which the bucket will be full again; any past one when it is.
#[derive(Clone, Copy, Default)]
struct Bucket(Duration);

impl Bucket {
    /// Takes a token, or answers how long there is none.
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

/// The buckets of organizations. There are at most as many as organizations, whose number strangers can't raise.
pub(crate) struct Requests {
    rate: Option<Rate>,
    buckets: Mutex<Buckets>,
}

struct Buckets {
    by_org: HashMap<OrgId, Bucket>,
    /// With that many, those that are full are dropped: twice what was left the last time, so that looking for
    /// them costs each request little.
    sweep_at: usize,
}

const FIRST_SWEEP: usize = 1024;

impl Requests {
    pub(crate) fn new(rate: Option<Rate>) -> Requests {
        let buckets = Buckets { by_org: HashMap::new(), sweep_at: FIRST_SWEEP };
        Requests { rate, buckets: Mutex::new(buckets) }
    }

    /// Counts a request, or answers how long none may come.
    pub(crate) fn take(&self, org: OrgId, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut buckets = lock(&self.buckets);
        if buckets.by_org.len() >= buckets.sweep_at {
            buckets.by_org.retain(|_, bucket| !bucket.is_full(now));
            buckets.sweep_at = FIRST_SWEEP.max(buckets.by_org.len() * 2);
        }
        buckets.by_org.entry(org).or_default().take(rate, now)
    }
}

/// The buckets of peers: a table of one size, so that no number of addresses fills the memory. Two peers may share
/// a bucket; which ones, nobody can tell from outside.
pub(crate) struct Failures {
    rate: Option<Rate>,
    buckets: Mutex<Vec<Bucket>>,
    hasher: RandomState,
}

/// 1 MiB.
const PEERS: usize = 1 << 16;

impl Failures {
    pub(crate) fn new(rate: Option<Rate>) -> Failures {
        let buckets = if rate.is_some() { vec![Bucket::default(); PEERS] } else { Vec::new() };
        Failures { rate, buckets: Mutex::new(buckets), hasher: RandomState::new() }
    }

    /// Counts a failure that may come, or answers how long none may.
    pub(crate) fn take(&self, peer: IpAddr, now: Duration) -> Result<(), Duration> {
        let Some(rate) = self.rate else { return Ok(()) };
        lock(&self.buckets)[self.place(peer)].take(rate, now)
    }

    /// It was none.
    pub(crate) fn give_back(&self, peer: IpAddr) {
        let Some(rate) = self.rate else { return };
        lock(&self.buckets)[self.place(peer)].give_back(rate);
    }

    fn place(&self, peer: IpAddr) -> usize {
        let hash = self.hasher.hash_one(network(peer));
        usize::try_from(hash % PEERS as u64).unwrap_or_default()
    }
}

/// What one client can be expected to have: an IPv4 address, or the /64 that an IPv6 client chooses its own from.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// Long after boot, as real clocks are.
    const START: Duration = Duration::from_secs(1_000_000);

    fn rate(count: u32, burst: u32) -> Option<Rate> {
        Some(Rate::new(count.try_into().unwrap(), SECOND, burst.try_into().unwrap()))
    }

    fn org(n: u128) -> OrgId {
        OrgId(Uuid::from_u128(n))
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let requests = Requests::new(rate(4, 3));
        let at = |ms| START + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(requests.take(org(1), START), Ok(()));
        }
        assert_eq!(requests.take(org(1), START), Err(Duration::from_millis(250)));
        assert_eq!(requests.take(org(1), at(100)), Err(Duration::from_millis(150)));
        assert_eq!(requests.take(org(1), at(250)), Ok(()));
        assert_eq!(requests.take(org(1), at(250)), Err(Duration::from_millis(250)));
        assert_eq!(requests.take(org(2), at(250)), Ok(()), "another organization has a bucket of its own");
        // A long rest gives the burst back, and no more.
        for _ in 0..3 {
            assert_eq!(requests.take(org(1), at(3_600_000)), Ok(()));
        }
        assert!(requests.take(org(1), at(3_600_000)).is_err());
    }

    #[test]
    fn in_the_long_run_the_rate_is_kept_exactly() {
        let requests = Requests::new(rate(50, 100));
        let passed =
            (0..600_000).filter(|ms| requests.take(org(1), START + Duration::from_millis(*ms)).is_ok());
        assert_eq!(passed.count(), 100 + 50 * 600 - 1);
    }

    #[test]
    fn organizations_that_call_no_more_are_forgotten() {
        let requests = Requests::new(rate(1, 2));
        for n in 0..100_000 {
            let now = START + SECOND / 1000 * u32::try_from(n).unwrap();
            assert_eq!(requests.take(org(n), now), Ok(()));
        }
        let kept = lock(&requests.buckets).by_org.len();
        assert!(kept <= 4 * FIRST_SWEEP, "{kept} buckets, of which 1,000 are not full");
    }

    #[test]
    fn what_was_no_failure_does_not_count() {
        let failures = Failures::new(rate(1, 2));
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
    fn an_ipv6_client_is_its_64_bit_network() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8:1:2:3:4:5:6", "2001:db8:1:2:ffff::1"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let (requests, failures) = (Requests::new(None), Failures::new(None));
        for _ in 0..100_000 {
            assert_eq!(requests.take(org(1), START), Ok(()));
            assert_eq!(failures.take(IpAddr::from([127, 0, 0, 1]), START), Ok(()));
        }
    }
}

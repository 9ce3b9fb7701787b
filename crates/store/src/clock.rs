//! The one source of time: it follows the database's clock, so that many hosts agree on when something is due.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contracts::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// A clock: suspend-counting monotonic time plus an offset. Cheap to clone; clones share the offset.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    /// Microseconds to add to the time since boot, and how well they are known.
    System { offset: AtomicI64, known: Mutex<Known> },
    /// The moment a test has set, in microseconds since 1970.
    Manual(AtomicI64),
}

/// How well an offset was known when it was sampled, and when on monotonic time that was.
struct Known {
    within: u64,
    sampled_at: Duration,
}

/// One part in so many of the time that passes is what one clock may gain on another: a quartz does no worse.
const DRIFT: u64 = 10_000;

impl Clock {
    /// This host's clock, until [`Clock::align`] is told better.
    pub fn system() -> Clock {
        // It may be a day off.
        let known = Known { within: u64::MAX, sampled_at: since_boot() };
        Clock(Arc::new(Source::System { offset: AtomicI64::new(host_offset()), known: Mutex::new(known) }))
    }

    /// A clock that stands still until it is set.
    pub fn manual(now: Timestamp) -> Clock {
        Clock(Arc::new(Source::Manual(AtomicI64::new(now.as_micros()))))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(match &*self.0 {
            Source::System { offset, .. } => micros(since_boot()) + offset.load(Ordering::Relaxed),
            Source::Manual(now) => now.load(Ordering::Relaxed),
        })
    }

    /// Time that only goes forward, and goes on while the host is suspended: what a lease is judged by.
    pub fn monotonic(&self) -> Duration {
        match &*self.0 {
            Source::System { .. } => since_boot(),
            Source::Manual(now) => Duration::from_micros(now.load(Ordering::Relaxed).max(0).unsigned_abs()),
        }
    }

    /// Moves a manual clock. Does nothing to a system clock.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &*self.0 {
            now.fetch_add(micros(by), Ordering::Relaxed);
        }
    }

    /// Takes over this host's time, which may have been set since.
    pub fn align_with_host(&self) {
        if let Source::System { offset, .. } = &*self.0 {
            offset.store(host_offset(), Ordering::Relaxed);
        }
    }

    /// Takes over the database's time: it said `theirs` between `asked` and `answered` of [`Clock::monotonic`].
    /// Answers whether the sample was used: when it says more than is known, or proves that wrong, as when the database
    /// has become another one. What a sample says is as good as its round trip is short; what is known ages.
    pub fn align(&self, theirs: Timestamp, asked: Duration, answered: Duration) -> bool {
        let Source::System { offset, known } = &*self.0 else { return false };
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let half = answered.saturating_sub(asked) / 2;
        let sampled = theirs.as_micros() - micros(asked + half);
        let within = micros(half).unsigned_abs();
        let age = micros(answered.saturating_sub(known.sampled_at)).unsigned_abs();
        let known_within = known.within.saturating_add(age / DRIFT);
        let difference = offset.load(Ordering::Relaxed).abs_diff(sampled);
        let is_used = within <= known_within || difference > known_within.saturating_add(within);
        if is_used {
            offset.store(sampled, Ordering::Relaxed);
            *known = Known { within, sampled_at: answered };
        }
        is_used
    }
}

/// What this host's clock is ahead of the time since boot, in microseconds.
#[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
fn host_offset() -> i64 {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    micros(wall) - micros(since_boot())
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_used_when_it_says_more_than_is_known_or_proves_that_wrong() {
        let (clock, slow, second) = (Clock::system(), Duration::from_secs(2), Duration::from_secs(1));
        let asked = clock.monotonic();
        let day_ahead = clock.now() + Duration::from_secs(86_400);
        assert!(clock.align(day_ahead, asked, asked + slow));
        assert!(clock.now() >= day_ahead - slow);
        assert!(clock.align(day_ahead, asked, asked));
        assert!(!clock.align(day_ahead + second / 2, asked, asked + slow));
        assert!(clock.now() < day_ahead + second / 2);
        let another = day_ahead + Duration::from_secs(120);
        assert!(clock.align(another, asked, asked + slow));
        assert!(clock.now() >= another - slow);
        assert!(clock.align(another, asked, asked + second), "shorter than the last one");
        // What was known has aged by then.
        let later = asked + Duration::from_secs(4_000);
        assert!(clock.align(another + Duration::from_secs(4_000), later, later + second));
        assert!(!clock.align(another + Duration::from_secs(4_000), later, later + slow));
    }
}

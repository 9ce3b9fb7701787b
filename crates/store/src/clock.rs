//! The only source of time. It follows the database's clock, so that all hosts agree on when an attempt is
//! due.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use contracts::Timestamp;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

/// Monotonic time that includes suspend, plus an offset. Cheap to clone; clones share the offset.
#[derive(Clone)]
pub struct Clock(Arc<Source>);

enum Source {
    /// Microseconds to add to the time since boot, and the accuracy of this offset.
    System { offset: AtomicI64, known: Mutex<Known> },
    /// The time set by a test, in microseconds since 1970.
    Manual(AtomicI64),
}

/// Accuracy of a sampled offset in microseconds, and the monotonic time of the sample.
struct Known {
    within: u64,
    sampled_at: Duration,
}

/// Assumed drift between two clocks: 1 in 10,000. A quartz clock drifts no more.
const DRIFT: u64 = 10_000;

impl Clock {
    /// Returns this host's clock, until [`Clock::align`] gets a better time.
    pub fn system() -> Clock {
        // The host's clock may be a day off.
        let known = Known { within: u64::MAX, sampled_at: since_boot() };
        Clock(Arc::new(Source::System { offset: AtomicI64::new(host_offset()), known: Mutex::new(known) }))
    }

    /// Returns a clock that only [`Clock::advance`] moves.
    pub fn manual(now: Timestamp) -> Clock {
        Clock(Arc::new(Source::Manual(AtomicI64::new(now.as_micros()))))
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(match &*self.0 {
            Source::System { offset, .. } => micros(since_boot()) + offset.load(Ordering::Relaxed),
            Source::Manual(now) => now.load(Ordering::Relaxed),
        })
    }

    /// Returns time that never goes backwards and includes suspend. Leases are judged by it.
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

    /// Aligns with this host's clock, which may have been changed since.
    pub fn align_with_host(&self) {
        if let Source::System { offset, .. } = &*self.0 {
            offset.store(host_offset(), Ordering::Relaxed);
        }
    }

    /// Returns by how many seconds this clock is ahead of the host's; negative if it is behind.
    pub fn ahead_of_host(&self) -> f64 {
        let Source::System { offset, .. } = &*self.0 else { return 0.0 };
        (offset.load(Ordering::Relaxed) - host_offset()) as f64 / 1e6
    }

    /// Takes a sample of the database's clock: `theirs` was read between `asked` and `answered` of
    /// [`Clock::monotonic`]. Returns whether the sample was used: if it is more accurate than the current
    /// offset, or contradicts it, for example because the database was replaced. A sample is accurate to
    /// half its round trip; the current offset loses accuracy with age.
    pub fn align(&self, theirs: Timestamp, asked: Duration, answered: Duration) -> bool {
        let Source::System { offset, known } = &*self.0 else { return false };
        let mut known = known.lock();
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

/// Returns how far this host's clock is ahead of the time since boot, in microseconds.
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
    fn a_sample_is_used_when_it_is_more_accurate_than_the_offset_or_contradicts_it() {
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
        // The offset has lost accuracy by then.
        let later = asked + Duration::from_secs(4_000);
        assert!(clock.align(another + Duration::from_secs(4_000), later, later + second));
        assert!(!clock.align(another + Duration::from_secs(4_000), later, later + slow));
    }
}

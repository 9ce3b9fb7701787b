//! How long to wait before connecting again.

use std::time::{Duration, Instant};

use crate::session::Lost;

/// Short enough that a broker's restart is hardly noticed.
const FIRST: Duration = Duration::from_millis(100);
/// Long enough for a broker that is down not to be hammered, short enough to be back soon after it.
const LONGEST: Duration = Duration::from_secs(5);

/// What only a person can mend is not said more often than that.
const LASTING: Duration = Duration::from_secs(30);

/// Counts sessions that ended badly in a row.
pub(crate) struct Backoff {
    failures: u32,
    begun: Instant,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { failures: 0, begun: Instant::now() }
    }

    /// Waits after a session that ended badly. One that lasted for a while counts as good, so a connection
    /// lost now and then is back at once, and one that is opened and lost again and again isn't hammered.
    pub(crate) async fn wait(&mut self, lost: &Lost) {
        if self.begun.elapsed() > LONGEST {
            self.failures = 0;
        }
        let wait = if lost.is_lasting() { LASTING } else { delay(self.failures, rand::random()) };
        tokio::time::sleep(wait).await;
        self.failures = self.failures.saturating_add(1);
        self.begun = Instant::now();
    }
}

/// Exponential with full jitter; `jitter` is in `0..1`. Clients that lost their broker together come back apart.
fn delay(failures: u32, jitter: f64) -> Duration {
    let ceiling = FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(LONGEST);
    ceiling.mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_are_spread_down_to_zero() {
        let ceilings = [0, 1, 5, 6, 40, u32::MAX].map(|failures| delay(failures, 1.0).as_millis());
        assert_eq!(ceilings, [100, 200, 3200, 5000, 5000, 5000]);
        assert_eq!(delay(6, 0.5), Duration::from_millis(2500));
        assert_eq!(delay(6, 0.0), Duration::ZERO);
    }
}

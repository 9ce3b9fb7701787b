//! The backoff between connections.

use std::time::{Duration, Instant};

use crate::rabbit::session::Lost;

/// The upper bound of the first wait. Short, so that a broker restart has little effect.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait. Long enough not to flood a broker that is down, short enough to reconnect soon after.
const LONGEST: Duration = Duration::from_secs(5);

/// The wait after a failure that only an operator can fix, to limit how often it is logged.
const LASTING: Duration = Duration::from_secs(30);

/// Counts consecutive failed sessions.
pub(crate) struct Backoff {
    failures: u32,
    begun: Instant,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { failures: 0, begun: Instant::now() }
    }

    /// Waits after a failed session. One that lasted longer than [`LONGEST`] resets the count. So an
    /// occasional loss is followed by a quick reconnect, and a broker that drops every connection is not
    /// flooded.
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

/// Returns an exponential delay with full jitter; `jitter` is in `0..1`. The jitter spreads the reconnects of
/// clients that lost the broker together.
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

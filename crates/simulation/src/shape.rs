//! Parameters of a history, drawn from its seed: the possible events and the dispatchers' limits. Events that
//! cut much else short or weaken the checks are possible only in some histories.

use std::time::Duration;

use contracts::AttemptNumber;
use engine::RetryPolicy;
use engine::dispatch::Limits;
use rand::prelude::*;
use rand::rngs::StdRng;

/// Timeout of one attempt.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// Maximum time that a `Retry-After` holds a destination.
pub(crate) const HOLD_CAP: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) limits: Limits,
    pub(crate) max_attempts: AttemptNumber,
    /// Number of steps before failures stop.
    pub(crate) steps: usize,
    /// The history must end before this step.
    pub(crate) last_step: usize,
    /// Number of deliveries that are pending for the first two receivers from the start.
    pub(crate) crowd: usize,
    /// Whether there are many slots and the crowd's receivers answer quickly.
    pub(crate) is_wide: bool,
    pub(crate) sets_database_clock: bool,
    /// Whether clients withdraw deliveries and operators erase runs.
    pub(crate) withdraws_and_erases: bool,
    pub(crate) has_large_payloads: bool,
    /// Whether hosts run out of sockets, name servers or keys.
    pub(crate) has_troubles: bool,
    /// Whether the database refuses to write some rows.
    pub(crate) refuses_rows: bool,
}

impl Shape {
    pub(crate) fn draw(rng: &mut StdRng) -> Shape {
        let is_crowded = rng.random_bool(0.04);
        // Enough slots to claim attempts ahead of a fast destination's responses.
        let is_wide = is_crowded && rng.random_bool(0.4);
        let retry = RetryPolicy {
            schedule: vec![Duration::from_secs(10), Duration::from_secs(60)],
            jitter: 0.1,
            stop_on_gone: true,
            hold_cap: HOLD_CAP,
        };
        let limits = Limits {
            max_in_flight: if is_wide { 24 } else { rng.random_range(3..=4) },
            max_in_flight_bytes: match is_wide {
                true => 100_000,
                false => *[7_000, 20_000].choose(rng).unwrap_or(&7_000),
            },
            max_in_flight_per_destination: if is_wide { 8 } else { rng.random_range(1..=2) },
            lease: LEASE,
            timeout: TIMEOUT,
            retry,
        };
        Shape {
            limits,
            max_attempts: 3,
            steps: if is_crowded { 60 } else { 180 },
            last_step: 20_000,
            crowd: if is_crowded { 50 } else { 0 },
            is_wide,
            sets_database_clock: rng.random_bool(0.2),
            withdraws_and_erases: rng.random_bool(0.2),
            has_large_payloads: rng.random_bool(0.4),
            has_troubles: rng.random_bool(0.3),
            refuses_rows: rng.random_bool(0.15),
        }
    }
}

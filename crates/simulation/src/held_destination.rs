//! Scenario: a destination answers 429 with `Retry-After` for half a day while many deliveries to it are
//! pending. Nothing else fails. The limits are the product's defaults.

use std::fmt;
use std::time::Duration;

use contracts::{DeliveryStatus, Timestamp};
use engine::RetryPolicy;
use engine::dispatch::Limits;
use rand::prelude::*;
use rand::rngs::StdRng;
use testkit::MemoryDatabase;

use crate::promise::{Broken, Counts};
use crate::receivers::{Manner, Receiver};
use crate::shape::Shape;
use crate::world::World;

/// Parameters of the scenario.
pub(crate) struct Scenario {
    /// Number of deliveries to the held destination.
    pub(crate) deliveries: usize,
    /// How long the destination answers 429.
    pub(crate) held_for: Duration,
    /// `Retry-After` of these responses.
    pub(crate) retry_after: Duration,
}

/// Measured results.
#[derive(Debug)]
pub(crate) struct Figures {
    scenario: String,
    /// Attempts while the destination answered 429.
    pub(crate) attempts: usize,
    /// Maximum number of attempts of one delivery, over the whole scenario.
    pub(crate) most_attempts: usize,
    pub(crate) exhausted: usize,
    /// Time from the destination's recovery until 95 % were delivered.
    most_delivered_after: Duration,
    /// Time from the destination's recovery until all were delivered.
    all_delivered_after: Duration,
    /// Deliveries to another destination in the meantime.
    beside: usize,
    /// How long the slowest of them took.
    pub(crate) slowest_beside: Duration,
}

/// Interval between deliveries to the other destination.
const BESIDE_EVERY: Duration = Duration::from_secs(600);

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.scenario)?;
        writeln!(f, "{:>9} attempts while it answered 429", self.attempts)?;
        writeln!(f, "{:>9} attempts of one delivery at most", self.most_attempts)?;
        writeln!(f, "{:>9} deliveries exhausted", self.exhausted)?;
        let [most, all] = [self.most_delivered_after, self.all_delivered_after].map(|after| after.as_secs());
        writeln!(f, "{most:>9} s from its recovery until 95 % were delivered")?;
        writeln!(f, "{all:>9} s from its recovery until all were delivered")?;
        let slowest = self.slowest_beside.as_millis();
        write!(
            f,
            "{:>9} deliveries to another destination meanwhile, the slowest in {slowest} ms",
            self.beside
        )
    }
}

impl Scenario {
    /// Plays the scenario and returns its figures.
    pub(crate) fn play(&self) -> Result<Figures, Broken> {
        let (mut database, mut counts) = (MemoryDatabase::default(), Counts::new());
        let receivers = vec![
            Receiver::new("held.example.com", Manner::Refusing(self.retry_after.as_secs())),
            Receiver::new("other.example.com", Manner::Healthy),
        ];
        let mut world = World::new(&mut database, &mut counts, StdRng::seed_from_u64(1), shape(), receivers);
        world.is_calm = true;
        for d in 0..world.dispatchers.len() {
            world.align(d);
            world.start(d);
        }
        for _ in 0..self.deliveries {
            world.add_run(0, false)?;
        }
        let (mut steps, ends_at) = (0, world.now + self.held_for);
        let beside = self.play_held(&mut world, ends_at, &mut steps)?;
        let attempts = world.facts.receipts.keys().filter(|(place, _)| *place < self.deliveries).count();
        world.receivers[0].manner = Manner::Healthy;
        world.play_until(&mut steps, |world| world.facts.deliveries.iter().all(|known| !known.is_open()))?;
        world.check_all()?;
        let held = &world.facts.deliveries[..self.deliveries];
        let took = |place: &usize| {
            let delivery = &world.facts.deliveries[*place].delivery;
            delivery.completed_at.unwrap_or(world.now).since(delivery.created_at)
        };
        let mut completed: Vec<Timestamp> =
            held.iter().filter_map(|known| known.delivery.completed_at).collect();
        completed.sort_unstable();
        let most = completed.get(completed.len() * 95 / 100).copied().unwrap_or(world.now);
        let hours = self.held_for.as_secs_f64() / 3600.0;
        Ok(Figures {
            scenario: format!(
                "{} deliveries to a destination that answers 429 with Retry-After: {} for {hours} h:",
                self.deliveries,
                self.retry_after.as_secs()
            ),
            attempts,
            most_attempts: held.iter().map(|known| known.delivery.attempts.len()).max().unwrap_or(0),
            exhausted: held
                .iter()
                .filter(|known| known.delivery.status_code == DeliveryStatus::Failed)
                .count(),
            most_delivered_after: most.since(ends_at),
            all_delivered_after: world.now.since(ends_at),
            beside: beside.len(),
            slowest_beside: beside.iter().map(took).max().unwrap_or_default(),
        })
    }

    /// Plays until the destination recovers. Returns the places of the deliveries to the other destination.
    fn play_held(
        &self,
        world: &mut World<'_>,
        ends_at: Timestamp,
        steps: &mut usize,
    ) -> Result<Vec<usize>, Broken> {
        let runs: Vec<usize> = (0..self.deliveries).collect();
        for batch in runs.chunks(100) {
            world.redeliver(0, batch, false)?;
            ring_all(world);
        }
        let mut beside = Vec::new();
        while world.now < ends_at {
            let next = (world.now + BESIDE_EVERY).min(ends_at);
            world.play_up_to(next, steps)?;
            let run = world.runs.len();
            world.add_run(1, false)?;
            beside.push(world.facts.deliveries.len());
            world.redeliver(0, &[run], false)?;
            ring_all(world);
        }
        Ok(beside)
    }
}

/// Publishes all doorbells.
fn ring_all(world: &mut World<'_>) {
    for job in std::mem::take(&mut world.apis[0].buffer) {
        world.publish(job);
    }
}

/// Returns the product's default limits, with all failures off.
fn shape() -> Shape {
    let minute = Duration::from_secs(60);
    let schedule = [10, 60, 300, 1_800, 7_200, 18_000, 36_000].map(Duration::from_secs).to_vec();
    let retry = RetryPolicy { schedule, jitter: 0.1, stop_on_gone: false, hold_cap: 15 * minute };
    let limits = Limits {
        max_in_flight: 256,
        max_in_flight_bytes: 64 << 20,
        max_in_flight_per_destination: 32,
        lease: minute,
        timeout: Duration::from_secs(10),
        retry,
    };
    Shape {
        limits,
        max_attempts: 8,
        steps: 0,
        last_step: 10_000_000,
        crowd: 0,
        is_wide: false,
        sets_database_clock: false,
        withdraws_and_erases: false,
        has_large_payloads: false,
        has_troubles: false,
        refuses_rows: false,
    }
}

/// The scenario of docs/proof.md.
pub(crate) const HALF_A_DAY: Scenario = Scenario {
    deliveries: 1_000,
    held_for: Duration::from_secs(12 * 3600),
    retry_after: Duration::from_secs(3600),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_destination_costs_few_attempts_and_exhausts_no_delivery() {
        let scenario = Scenario {
            deliveries: 100,
            held_for: Duration::from_secs(3 * 3600),
            retry_after: Duration::from_secs(3600),
        };
        let figures = scenario.play().unwrap();
        assert!(figures.most_attempts <= 2 && figures.exhausted == 0, "{figures:?}");
        assert!(figures.slowest_beside < Duration::from_secs(2), "{figures:?}");
    }
}

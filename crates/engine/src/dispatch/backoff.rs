//! Backoff for deliveries that the database refuses to change.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::DeliveryId;

/// The first wait. Each further one is twice as long.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
/// The most deliveries stepped over. Beyond it, the one whose wait ends first is retried at once.
const MOST: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct SteppedOver(BTreeMap<DeliveryId, Wait>);

#[derive(Debug)]
struct Wait {
    until: Duration,
    length: Duration,
}

impl SteppedOver {
    /// Adds a refused delivery. Returns how long it is skipped.
    pub(super) fn add(&mut self, id: DeliveryId, now: Duration) -> Duration {
        let length = self.0.get(&id).map_or(FIRST, |wait| (wait.length * 2).min(LONGEST));
        self.0.insert(id, Wait { until: now + length, length });
        if self.0.len() > MOST {
            let first = self.0.iter().min_by_key(|(_, wait)| wait.until).map(|(id, _)| *id);
            first.map(|id| self.0.remove(&id));
        }
        length
    }

    /// Removes a delivery that could be changed.
    pub(super) fn remove(&mut self, id: DeliveryId) {
        self.0.remove(&id);
    }

    /// Returns the deliveries to skip at `now`.
    pub(super) fn ids(&self, now: Duration) -> Vec<DeliveryId> {
        self.0.iter().filter(|(_, wait)| wait.until > now).map(|(id, _)| *id).collect()
    }

    /// Removes the deliveries that were not refused again within [`LONGEST`] after their wait.
    pub(super) fn forget_old(&mut self, now: Duration) {
        self.0.retain(|_, wait| wait.until + LONGEST > now);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_refusal_doubles_the_wait_up_to_the_longest() {
        let (mut stepped_over, id) = (SteppedOver::default(), DeliveryId(Uuid::nil()));
        let mut now = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..10 {
            let wait = stepped_over.add(id, now);
            assert_eq!(stepped_over.ids(now), [id]);
            now += wait;
            assert!(stepped_over.ids(now).is_empty());
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        stepped_over.remove(id);
        assert_eq!(stepped_over.add(id, now), FIRST);
    }
}

//! Doorbells waiting for a claim. They are few, because each one has room at its destination.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use contracts::{Destination, Job};

use super::events::{Doorbell, Now};
use crate::transition::DOORBELL_GRACE;

/// The relay has been looking for a delivery of this age for seconds. A queue that has filled up while no
/// dispatcher consumed it must not delay the doorbells of new deliveries behind it.
const STALE: Duration = Duration::from_secs(5);

/// Returns whether a doorbell is too old to be worth a claim.
pub(super) fn is_stale(doorbell: &Doorbell, now: Now) -> bool {
    doorbell.job.delivery_id.created_at().is_some_and(|created_at| now.clock.since(created_at) > STALE)
}

#[derive(Debug, Default)]
pub(super) struct Doorbells {
    queues: BTreeMap<Destination, VecDeque<(Doorbell, Duration)>>,
    /// The destinations in round-robin order.
    circle: VecDeque<Destination>,
    count: usize,
}

impl Doorbells {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn of(&self, destination: Destination) -> usize {
        self.queues.get(&destination).map_or(0, VecDeque::len)
    }

    pub(super) fn push(&mut self, doorbell: Doorbell, now: Duration) {
        let destination = doorbell.job.destination;
        let queue = self.queues.entry(destination).or_default();
        if queue.is_empty() {
            self.circle.push_back(destination);
        }
        queue.push_back((doorbell, now));
        self.count += 1;
    }

    /// Takes up to `room` doorbells that fit, round-robin by destination. Returns those taken and those that
    /// did not fit.
    pub(super) fn take(
        &mut self,
        room: usize,
        mut fits: impl FnMut(&Job) -> bool,
    ) -> (Vec<Doorbell>, Vec<Doorbell>) {
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        while taken.len() < room
            && let Some(destination) = self.circle.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&destination) else { continue };
            if let Some((doorbell, _)) = queue.pop_front() {
                self.count -= 1;
                if fits(&doorbell.job) { taken.push(doorbell) } else { refused.push(doorbell) }
            }
            if queue.is_empty() {
                self.queues.remove(&destination);
            } else {
                self.circle.push_back(destination);
            }
        }
        (taken, refused)
    }

    /// Removes and returns the doorbells of a destination.
    pub(super) fn forget(&mut self, destination: Destination) -> Vec<Doorbell> {
        self.circle.retain(|other| *other != destination);
        let queue = self.queues.remove(&destination).unwrap_or_default();
        self.count -= queue.len();
        queue.into_iter().map(|(doorbell, _)| doorbell).collect()
    }

    /// Removes and returns all doorbells.
    pub(super) fn forget_all(&mut self) -> Vec<Doorbell> {
        let all: Vec<Destination> = self.queues.keys().copied().collect();
        all.into_iter().flat_map(|destination| self.forget(destination)).collect()
    }

    /// Removes and returns the doorbells of destinations whose oldest has waited for [`DOORBELL_GRACE`]: the
    /// relay claims their deliveries.
    pub(super) fn forget_old(&mut self, now: Duration) -> Vec<Doorbell> {
        let is_old = |queue: &VecDeque<(Doorbell, Duration)>| {
            queue.front().is_some_and(|(_, since)| *since + DOORBELL_GRACE <= now)
        };
        let old = self.queues.iter().filter(|(_, queue)| is_old(queue)).map(|(destination, _)| *destination);
        let old: Vec<Destination> = old.collect();
        old.into_iter().flat_map(|destination| self.forget(destination)).collect()
    }

    /// Returns when [`Doorbells::forget_old`] next has something to remove.
    pub(super) fn next(&self) -> Option<Duration> {
        self.queues.values().filter_map(|queue| queue.front()).map(|(_, since)| *since + DOORBELL_GRACE).min()
    }
}

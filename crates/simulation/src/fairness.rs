//! Checks of invariant I12 and of the in-flight limits.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{Destination, Timestamp};
use engine::{Claimed, PollResult, RelayPlan};

use crate::promise::{Step, promise};
use crate::world::World;

impl World<'_> {
    /// Checks I12: a poll claims a destination's oldest deliveries first, and polls pass over no destination
    /// for long. `now` is the transaction's.
    pub(crate) fn note_poll(
        &mut self,
        d: usize,
        plan: &RelayPlan,
        now: Timestamp,
        poll: &PollResult,
        claimed: &[Claimed],
    ) -> Step {
        let places: BTreeSet<usize> =
            claimed.iter().map(|claimed| self.facts.place(claimed.held.delivery_id)).collect();
        // For each destination, the oldest delivery that could have been claimed but was not.
        let mut passed_by: BTreeMap<Destination, (Timestamp, usize, u64)> = BTreeMap::new();
        let mut served: BTreeMap<Destination, Timestamp> = BTreeMap::new();
        for (place, known) in self.facts.deliveries.iter().enumerate() {
            let Some(wakes_at) = known.wakes_at() else { continue };
            if places.contains(&place) {
                let latest = served.entry(known.destination).or_insert(wakes_at);
                *latest = (*latest).max(wakes_at);
                continue;
            }
            let is_held = self.facts.holds.contains_key(&known.destination);
            let is_seen = plan.targets.is_empty() || plan.targets.contains(&known.destination);
            if wakes_at <= now && is_seen && !is_held && !plan.stepped_over.contains(&known.delivery.id) {
                let waiting = (wakes_at, place, known.frozen.len() as u64);
                let oldest = passed_by.entry(known.destination).or_insert(waiting);
                *oldest = waiting.min(*oldest);
            }
        }
        let bound = 2 * self.receivers.len() + 6;
        for (destination, (wakes_at, place, bytes)) in passed_by {
            if let Some(latest) = served.get(&destination) {
                promise(*latest <= wakes_at, || format!("I12: d{place} is overtaken by a younger delivery"))?;
            }
            let room = plan.rooms.get(&destination).copied().unwrap_or(plan.ordinary_room);
            let in_flight = plan.bytes_in_flight.get(&destination);
            let is_free = room > 0
                && poll.too_large.is_none()
                && in_flight.is_none_or(|in_flight| in_flight + bytes <= plan.bytes.per_destination);
            let missed = self.missed.0.entry((d, destination)).or_default();
            match served.contains_key(&destination) {
                true => *missed = 0,
                false => *missed += usize::from(is_free),
            }
            promise(*missed <= bound, || {
                format!(
                    "I12: dispatcher {d} has not claimed d{place} in {missed} polls, although it could have"
                )
            })?;
        }
        Ok(())
    }

    /// Checks a dispatcher's attempts in flight against its limits.
    pub(crate) fn check_in_flight(&mut self, d: usize) -> Step {
        let limits = &self.shape.limits;
        let Some(process) = &self.dispatchers[d].process else { return Ok(()) };
        let count = process.attempts.len();
        promise(count <= limits.max_in_flight, || format!("dispatcher {d} has {count} attempts in flight"))?;
        let bytes: u64 = process.attempts.iter().map(|attempt| attempt.claimed.payload.len() as u64).sum();
        promise(bytes <= limits.max_in_flight_bytes || count == 1, || {
            format!("dispatcher {d} has {bytes} bytes in flight")
        })?;
        for receiver in &self.receivers {
            let (count, bytes) = process.in_flight_to(receiver.destination);
            let url = &receiver.url;
            promise(count <= limits.max_in_flight_per_destination, || {
                format!("dispatcher {d} has {count} attempts in flight to {url}")
            })?;
            promise(bytes <= limits.max_in_flight_bytes / 8 || count <= 1, || {
                format!("dispatcher {d} has {bytes} bytes in flight to {url}")
            })?;
        }
        let claimed = process.machine.in_flight();
        promise(claimed >= count, || format!("dispatcher {d} counts {claimed} attempts of {count}"))?;
        let is_over_budget = bytes > limits.max_in_flight_bytes;
        if claimed > count {
            self.count("an attempt claimed ahead");
        }
        if is_over_budget {
            self.count("a payload above the byte limit, alone in flight");
        }
        Ok(())
    }
}

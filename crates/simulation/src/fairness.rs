//! I11, I12 and the limits of what is in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use contracts::{DeliveryId, Destination, Timestamp};
use engine::{Claimed, Effect, HeldAttempt, Look, RelayPlan};
use testkit::HoldRow;

use crate::checks::Cause;
use crate::world::{Broken, CLOCK_ERROR, Step, World, promise};

/// How many looks in a row each dispatcher has made past a destination that it could have served.
#[derive(Default)]
pub(crate) struct MissedLooks(BTreeMap<(usize, Destination), usize>);

impl MissedLooks {
    /// A dispatcher begins anew.
    pub(crate) fn forget(&mut self, d: usize) {
        self.0.retain(|(dispatcher, _), _| *dispatcher != d);
    }
}

impl World<'_> {
    /// I12: a dispatcher's look at whatever is due serves the oldest of a destination first, and none is passed by for
    /// long. `now` is the moment it worked with.
    pub(crate) fn note_look(
        &mut self,
        d: usize,
        plan: &RelayPlan,
        now: Timestamp,
        look: &Look,
        claimed: &[Claimed],
    ) -> Step {
        let places: BTreeSet<usize> =
            claimed.iter().map(|claimed| self.facts.place(claimed.held.delivery_id)).collect();
        // The oldest that waits for each destination, that could be claimed, and is not.
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
                promise(*latest <= wakes_at, || format!("I12: d{place} is overtaken by a younger one"))?;
            }
            let room = plan.rooms.get(&destination).copied().unwrap_or(plan.ordinary_room);
            let in_flight = plan.bytes_in_flight.get(&destination);
            let is_free = room > 0
                && look.too_large.is_none()
                && in_flight.is_none_or(|in_flight| in_flight + bytes <= plan.bytes.per_destination);
            let missed = self.missed.0.entry((d, destination)).or_default();
            match served.contains_key(&destination) {
                true => *missed = 0,
                false => *missed += usize::from(is_free),
            }
            promise(*missed <= bound, || {
                format!(
                    "I12: dispatcher {d} has made {missed} looks past d{place}, and could have claimed it"
                )
            })?;
        }
        Ok(())
    }

    /// What a dispatcher has in flight is within its limits.
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
            self.saw("an attempt claimed ahead");
        }
        if is_over_budget {
            self.saw("a payload beyond the budget, alone");
        }
        Ok(())
    }

    /// I11: an attempt may be claimed as far as its destination's hold is concerned.
    pub(crate) fn check_hold(&mut self, d: usize, held: &HeldAttempt, name: &str) -> Step {
        let Some(hold) = self.facts.holds.get(&held.destination) else { return Ok(()) };
        if self.dispatchers[d].is_misaligned() {
            return Ok(());
        }
        let latest = self.database_time() + CLOCK_ERROR;
        promise(hold.held_until <= latest, || {
            format!("I11: {name} is claimed while its destination is held")
        })?;
        promise(held.is_probe, || format!("I11: {name} is claimed, and is not its destination's probe"))?;
        let is_under_way = hold.probe.is_some_and(|(leased_until, _)| leased_until > latest);
        promise(!is_under_way, || format!("I11: {name} is claimed beside its destination's probe"))?;
        self.saw("a probe");
        Ok(())
    }

    /// Looks at the rows of destinations after a step that wrote to some. Returns the deliveries whose next attempt they put
    /// off or bring forward.
    pub(crate) fn check_holds(
        &mut self,
        cause: &Cause<'_>,
        asked: &BTreeMap<Destination, Timestamp>,
    ) -> Result<Vec<DeliveryId>, Broken> {
        let rows: BTreeMap<Destination, HoldRow> =
            self.database.holds().into_iter().map(|row| (row.destination, row)).collect();
        let before = std::mem::replace(&mut self.facts.holds, rows.clone());
        let destinations: BTreeSet<Destination> = before.keys().chain(rows.keys()).copied().collect();
        let mut to_read = Vec::new();
        for destination in destinations {
            let (before, after) = (before.get(&destination), rows.get(&destination));
            if before == after {
                continue;
            }
            let asked = asked.get(&destination).copied();
            self.check_hold_change(destination, before, after, cause, asked)?;
            let waits = |place: &usize| self.facts.deliveries[*place].destination == destination;
            let waiting = (0..self.facts.deliveries.len()).filter(waits);
            let waiting = waiting.map(|place| &self.facts.deliveries[place].delivery);
            to_read.extend(
                waiting.filter(|delivery| delivery.next_attempt_at.is_some()).map(|delivery| delivery.id),
            );
        }
        Ok(to_read)
    }

    fn check_hold_change(
        &mut self,
        destination: Destination,
        before: Option<&HoldRow>,
        after: Option<&HoldRow>,
        cause: &Cause<'_>,
        asked: Option<Timestamp>,
    ) -> Step {
        let held_until = before.map(|hold| hold.held_until);
        let probe = before.and_then(|hold| hold.probe);
        // The probe that has just been recorded, if it is this destination's.
        let recorded_probe = match (cause, probe) {
            (Cause::Record { results, .. }, Some((_, claim))) => {
                results.iter().find(|result| result.claim_id == claim && result.destination == destination)
            }
            _ => None,
        };
        let Some(after) = after else {
            let is_forgotten = match cause {
                Cause::Tidying { now } => {
                    let an_hour_ago = *now - Duration::from_secs(3600);
                    held_until.is_some_and(|until| until <= an_hour_ago)
                        && probe.is_none_or(|(until, _)| until <= *now)
                }
                _ => recorded_probe.is_some() && asked.is_none(),
            };
            self.saw(match cause {
                Cause::Tidying { .. } => "a hold forgotten",
                _ => "a hold that is over",
            });
            return promise(is_forgotten, || {
                format!("I11: the hold of {destination} has gone without its probe")
            });
        };
        promise(held_until.max(asked) == Some(after.held_until), || {
            format!("I11: {destination} is held until {}, not {held_until:?} or {asked:?}", after.held_until)
        })?;
        if asked > held_until {
            self.saw("a destination held");
        }
        match (probe, after.probe) {
            (_, None) if probe.is_some() => {
                promise(recorded_probe.is_some(), || format!("I11: the probe of {destination} has gone"))
            }
            (earlier, Some((_, claim))) if earlier.map(|(_, claim)| claim) != Some(claim) => {
                let is_claimed = matches!(cause, Cause::Claim(claimed) if claimed.iter().any(|claimed| {
                    claimed.held.destination == destination && claimed.held.is_probe && claimed.held.claim_id == claim
                }));
                promise(is_claimed, || format!("I11: {destination} has a probe that nobody claimed"))
            }
            _ => Ok(()),
        }
    }

    /// Until when the answers of results that are recorded now want their destinations held. To be asked before what is
    /// known is brought up to date.
    pub(crate) fn asked_for(&self, cause: &Cause<'_>) -> BTreeMap<Destination, Timestamp> {
        let mut asked = BTreeMap::new();
        let Cause::Record { results, effects } = cause else { return asked };
        for (result, effect) in results.iter().zip(*effects) {
            let Some(place) = self.facts.known_place(result.delivery_id) else { continue };
            let key = (place, result.record.number);
            let claim = self.facts.claims.get(&key);
            let is_news = claim.is_some_and(|claim| claim.is_open && claim.claim_id == result.claim_id);
            let asks = self.facts.receipts.get(&key).and_then(|receipt| receipt.asks);
            if let Some(asks) = asks.filter(|_| is_news && *effect == Effect::Recorded) {
                let until = asked.entry(result.destination).or_insert(asks.held_until);
                *until = asks.held_until.max(*until);
            }
        }
        asked
    }
}

//! Checks of invariant I11: attempts and the holds of their destinations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use contracts::{DeliveryId, Destination, Timestamp};
use engine::{Effect, HeldAttempt};
use testkit::HoldRow;

use crate::checks::Cause;
use crate::promise::{Broken, CLOCK_ERROR, Step, promise};
use crate::world::World;

impl World<'_> {
    /// Checks I11 for a claimed attempt: a held destination allows only its probe, after the end of the hold.
    pub(crate) fn check_hold(&mut self, d: usize, held: &HeldAttempt, name: &str) -> Step {
        let Some(hold) = self.facts.holds.get(&held.destination) else { return Ok(()) };
        if self.dispatchers[d].is_misaligned() {
            return Ok(());
        }
        let latest = self.database_time() + CLOCK_ERROR;
        promise(hold.held_until <= latest, || {
            format!("I11: {name} is claimed while its destination is held")
        })?;
        promise(held.is_probe, || format!("I11: {name} is claimed, but is not its destination's probe"))?;
        let is_under_way = hold.probe.is_some_and(|(leased_until, _)| leased_until > latest);
        promise(!is_under_way, || format!("I11: {name} is claimed beside its destination's probe"))?;
        self.count("a probe");
        Ok(())
    }

    /// Checks changes to `destinations`. Returns the deliveries whose `next_attempt_at` they may change.
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
        // The result of this destination's probe, if it is being recorded.
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
            self.count(match cause {
                Cause::Tidying { .. } => "an expired hold deleted",
                _ => "a hold ended by its probe",
            });
            return promise(is_forgotten, || {
                format!("I11: the hold of {destination} was deleted before its time")
            });
        };
        promise(held_until.max(asked) == Some(after.held_until), || {
            format!("I11: {destination} is held until {}, not {held_until:?} or {asked:?}", after.held_until)
        })?;
        if asked > held_until {
            self.count("a destination held");
        }
        match (probe, after.probe) {
            (_, None) if probe.is_some() => {
                promise(recorded_probe.is_some(), || format!("I11: the probe of {destination} has vanished"))
            }
            (earlier, Some((_, claim))) if earlier.map(|(_, claim)| claim) != Some(claim) => {
                let is_claimed = matches!(cause, Cause::Claim(claimed) if claimed.iter().any(|claimed| {
                    claimed.held.destination == destination && claimed.held.is_probe && claimed.held.claim_id == claim
                }));
                promise(is_claimed, || format!("I11: {destination} has a probe that was not claimed"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the end of the hold that the responses being recorded request for each destination. Must be
    /// called before the facts are updated.
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

//! Invariants of the database rows, checked after every transaction.

use contracts::{Attempt, Delivery, DeliveryId, DeliveryStatus, Timestamp};
use engine::{AttemptResult, Claimed, Effect};
use store::{DeliveryParts, find_delivery};

use crate::facts::KnownDelivery;
use crate::promise::{ORG, Step, promise};
use crate::world::World;

/// The transaction that wrote to the database.
pub(crate) enum Cause<'a> {
    Api,
    Claim(&'a [Claimed]),
    Record { results: &'a [AttemptResult], effects: &'a [Effect] },
    Recovery,
    Tidying { now: Timestamp },
}

impl World<'_> {
    /// Checks the rows that a transaction has changed.
    pub(crate) fn check(&mut self, cause: &Cause<'_>) -> Step {
        let asked = self.asked_for(cause);
        let changes = self.database.changes();
        let mut to_read = changes.deliveries;
        if changes.destinations {
            to_read.extend(self.check_holds(cause, &asked)?);
        }
        for id in &to_read {
            let read =
                self.database.transaction(true, |tx| find_delivery(tx, ORG, *id, DeliveryParts::ALL))?;
            let Some(delivery) = read else {
                return promise(false, || format!("I1: a delivery has vanished: {}", self.facts.name(*id)));
            };
            self.check_delivery(delivery)?;
        }
        for (destination, until) in asked {
            let is_held = self.facts.holds.get(&destination).is_some_and(|hold| hold.held_until >= until);
            promise(is_held, || {
                format!("I11: {destination} is not held, although its receiver requested it")
            })?;
        }
        Ok(())
    }

    fn check_delivery(&mut self, delivery: Delivery) -> Step {
        let Some(place) = self.facts.known_place(delivery.id) else { return self.add_delivery(delivery) };
        let known = &self.facts.deliveries[place];
        if known.delivery == delivery {
            return Ok(());
        }
        let (before, run) = (known.delivery.clone(), known.run);
        check_outline(place, &before, &delivery)?;
        if let Some(hold) = self.facts.holds.get(&known.destination) {
            let is_true = delivery.next_attempt_at.is_none_or(|at| at >= hold.held_until);
            promise(is_true, || format!("I11: d{place} is scheduled while its destination is held"))?;
        }
        // Erasing is the only exception to I2 and I8.
        let is_erased = self.runs[run].is_erased;
        let stands = if is_erased { "{}" } else { known.frozen.as_str() };
        promise(delivery.payload_bytes == stands, || format!("I8: the payload of d{place} changed"))?;
        let mut records = before.attempts.clone();
        if is_erased {
            records.iter_mut().for_each(|record| record.response_body = None);
            let is_left = delivery.attempts.iter().any(|attempt| attempt.response_body.is_some());
            promise(!is_left, || format!("a response to d{place} is left or recorded after the erasure"))?;
        }
        for (index, attempt) in delivery.attempts.iter().enumerate() {
            let earlier = records.get(index);
            if earlier != Some(attempt) {
                if is_erased && earlier.is_some() {
                    self.count("a late result of an erased run");
                }
                self.check_record(place, earlier, attempt)?;
            }
        }
        if delivery.attempt_count < before.attempt_count {
            self.note_handed_back(place, &before, &delivery)?;
        }
        self.facts.deliveries[place].delivery = delivery;
        self.check_run(run)
    }

    fn add_delivery(&mut self, delivery: Delivery) -> Step {
        let Some(run) = self.runs.iter().position(|run| run.id == delivery.run_id) else {
            return promise(false, || "a delivery without a run".into());
        };
        let (frozen, destination) = (delivery.payload_bytes.clone(), self.destination(run));
        let known = KnownDelivery { delivery, frozen, run, destination, is_refused: false };
        let place = self.facts.add(known);
        self.runs[run].deliveries.push(place);
        self.check_run(run)
    }

    fn check_run(&self, run: usize) -> Step {
        let deliveries = self.runs[run].deliveries.iter().map(|place| &self.facts.deliveries[*place]);
        let open = deliveries.clone().filter(|known| known.is_open()).count();
        promise(open <= 1, || format!("I10: {open} deliveries of a run are open"))?;
        let automatic = deliveries.filter(|known| known.delivery.is_automatic).count();
        let is_announced = self.runs[run].is_announced;
        promise(automatic == usize::from(is_announced), || format!("a run is announced {automatic} times"))
    }

    /// Checks a released attempt number: its attempt must have been in flight and not sent.
    fn note_handed_back(&mut self, place: usize, before: &Delivery, delivery: &Delivery) -> Step {
        let number = before.attempt_count;
        let name = format!("attempt {number} of d{place}");
        let is_back = before.status_code == DeliveryStatus::Delivering
            && delivery.status_code != DeliveryStatus::Delivering
            && delivery.attempt_count == number - 1;
        promise(is_back, || format!("I3: {name} is handed back, but was not in flight"))?;
        let was_sent = self.facts.receipts.contains_key(&(place, number));
        promise(!was_sent, || format!("I5: {name} is handed back, but was sent"))?;
        self.facts.claims.remove(&(place, number));
        self.count("a number handed back");
        Ok(())
    }

    /// Checks a new or changed record of an attempt.
    fn check_record(&mut self, place: usize, earlier: Option<&Attempt>, attempt: &Attempt) -> Step {
        let number = attempt.attempt_number;
        let name = format!("the record of attempt {number} of d{place}");
        promise(earlier.is_none_or(is_unknown), || format!("I2: {name} changed: {earlier:?}"))?;
        let receipt = self.facts.receipts.get(&(place, number));
        if !is_failure(attempt) {
            let was_accepted = receipt.is_some_and(|receipt| receipt.is_accepted);
            promise(was_accepted, || {
                format!("I6: {name} is a success, but the receiver did not answer 2xx")
            })?;
        }
        let text = attempt.error_message.as_deref().unwrap_or_default();
        let is_not_sent = text.contains("not sent: ");
        promise(!(receipt.is_some() && is_not_sent), || format!("{name} is false: it was sent"))?;
        let Some(claim) = self.facts.claims.get_mut(&(place, number)) else {
            return promise(false, || format!("I4: {name} without a claim"));
        };
        claim.is_open = false;
        let is_odd = is_unknown(attempt) || is_not_sent;
        promise(!is_odd || claim.is_disturbed, || format!("{name} has no explanation: {text}"))?;
        if earlier.is_some() {
            // The next attempt was scheduled without its `Retry-After`.
            if let Some(receipt) = self.facts.receipts.get_mut(&(place, number)) {
                receipt.asks = None;
            }
            self.count(if is_failure(attempt) { "a late failure" } else { "a late success" });
        }
        Ok(())
    }

    /// Checks that no delivery has changed since it was last read.
    pub(crate) fn check_all(&mut self) -> Step {
        let ids: Vec<DeliveryId> = self.facts.deliveries.iter().map(|known| known.delivery.id).collect();
        for id in ids {
            let read =
                self.database.transaction(true, |tx| find_delivery(tx, ORG, id, DeliveryParts::ALL))?;
            let known = &self.facts.deliveries[self.facts.place(id)];
            promise(read.as_ref() == Some(&known.delivery), || {
                format!("I1: {} has vanished or changed unnoticed", self.facts.name(id))
            })?;
        }
        Ok(())
    }
}

/// Checks a delivery's columns against its attempts and its previous state.
fn check_outline(place: usize, before: &Delivery, delivery: &Delivery) -> Step {
    let under_way = i32::from(delivery.status_code == DeliveryStatus::Delivering);
    let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
    let expected: Vec<_> = (1..=delivery.attempt_count - under_way).collect();
    promise(numbers == expected, || format!("I3: d{place} has attempts {numbers:?}"))?;
    let is_accepted = delivery.attempts.iter().any(|attempt| !is_failure(attempt));
    let has_succeeded = delivery.status_code == DeliveryStatus::Succeeded;
    promise(!has_succeeded || is_accepted, || format!("I6: d{place} succeeded without a success"))?;
    let end = |delivery: &Delivery| {
        let Delivery { status_code, completed_at, attempt_count, failure_reason_code, .. } = *delivery;
        (status_code, completed_at, attempt_count, failure_reason_code)
    };
    let was_terminal = before.completed_at.is_some();
    promise(!was_terminal || end(before) == end(delivery), || format!("I2: d{place} changed after its end"))
}

pub(crate) fn is_failure(attempt: &Attempt) -> bool {
    attempt.error_message.is_some()
}

fn is_unknown(attempt: &Attempt) -> bool {
    attempt.error_message.as_ref().is_some_and(|text| text.starts_with("outcome_unknown: "))
}

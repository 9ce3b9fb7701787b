//! What really happened, kept apart from the database, and what may never be seen beside it.

use std::collections::{BTreeMap, HashMap};

use contracts::{Attempt, AttemptNumber, Delivery, DeliveryId, DeliveryStatus, Timestamp};
use store::Claimed;

use crate::actors::Dispatcher;
use crate::world::{CLOCK_ERROR, Known, POLICY, Step, World, promise};

/// What really happened.
#[derive(Default)]
pub(crate) struct Facts {
    /// In which order deliveries were accepted: their names in a trace.
    pub(crate) order: Vec<DeliveryId>,
    pub(crate) claims: BTreeMap<(usize, AttemptNumber), ClaimFact>,
    pub(crate) receipts: HashMap<(DeliveryId, AttemptNumber), Receipt>,
    /// The payloads, as they were accepted.
    pub(crate) frozen: HashMap<DeliveryId, String>,
    /// As they stood after the last step.
    pub(crate) known: Known,
}

/// A committed claim.
#[derive(Debug)]
pub(crate) struct ClaimFact {
    pub(crate) dispatcher: usize,
    /// By true time.
    pub(crate) lease_end: Timestamp,
    /// By the database's clock.
    pub(crate) wake_at: Timestamp,
    /// Not on record yet.
    pub(crate) is_open: bool,
    /// Its dispatcher was killed or stopped, or the database went away: it may end as `outcome_unknown`.
    pub(crate) is_disturbed: bool,
}

/// A callback that arrived.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) is_accepted: bool,
}

impl Facts {
    /// A delivery's name in a trace.
    pub(crate) fn name(&self, id: DeliveryId) -> String {
        self.order.iter().position(|known| *known == id).map_or("?".into(), |place| format!("d{place}"))
    }

    /// When it was accepted, counted from 0.
    pub(crate) fn place(&self, id: DeliveryId) -> usize {
        self.order.iter().position(|known| *known == id).unwrap_or(usize::MAX)
    }

    /// The claims of that dispatcher that are not on record may end as anything.
    pub(crate) fn disturb(&mut self, dispatcher: Option<usize>) {
        for claim in self.claims.values_mut().filter(|claim| claim.is_open) {
            claim.is_disturbed |= dispatcher.is_none_or(|dispatcher| dispatcher == claim.dispatcher);
        }
    }
}

impl World<'_> {
    /// Notes committed claims, which must have been allowed.
    pub(crate) fn note_claims(&mut self, dispatcher: usize, claimed: &[Claimed]) -> Step {
        for Claimed { held, payload, .. } in claimed {
            let (id, number) = (held.delivery_id, held.attempt);
            let place = self.facts.place(id);
            let before = &self.facts.known[&id];
            let name = format!("attempt {number} of d{place}");
            promise(before.completed_at.is_none(), || format!("I2: {name} is claimed after its end"))?;
            promise(number == before.attempt_count + 1, || {
                format!("I3: {name} follows {}", before.attempt_count)
            })?;
            promise(number <= POLICY.max_attempts, || format!("I3: {name} is beyond the budget"))?;
            promise(before.attempts.iter().all(is_failure), || {
                format!("I7: {name} is claimed after a success")
            })?;
            promise(*payload == self.facts.frozen[&id].as_bytes(), || format!("I8: {name} has other bytes"))?;
            let latest = self.database_time() + CLOCK_ERROR;
            let is_due = number == 1
                || before.next_attempt_at.is_some_and(|at| at <= latest)
                || self.dispatchers[dispatcher].is_misaligned();
            promise(is_due, || format!("{name} is claimed before it is due"))?;
            let fact = ClaimFact {
                dispatcher,
                lease_end: self.now + self.lease(),
                wake_at: held.claimed_at + self.lease(),
                is_open: true,
                // Whoever has not heard yet that the database's clock was set may end its lease early.
                is_disturbed: self.dispatchers.iter().any(Dispatcher::is_misaligned),
            };
            let earlier = self.facts.claims.insert((place, number), fact);
            promise(earlier.is_none(), || format!("I5: {name} is claimed twice"))?;
        }
        Ok(())
    }

    /// Notes a callback, which must have been allowed.
    pub(crate) fn note_receipt(&mut self, claimed: &Claimed, bytes: &[u8], is_accepted: bool) -> Step {
        let (id, number) = (claimed.held.delivery_id, claimed.held.attempt);
        let place = self.facts.place(id);
        let name = format!("attempt {number} of d{place}");
        let claim = self.facts.claims.get(&(place, number));
        promise(claim.is_some(), || format!("I4: {name} is sent without a committed claim"))?;
        // Where the database's clock is set forward, an attempt is still sent for the true length of its lease.
        let in_time = claim.is_some_and(|claim| {
            let is_in_true_time = self.may_set_database_clock && self.now <= claim.lease_end + CLOCK_ERROR;
            is_in_true_time || self.database_time() <= claim.wake_at + CLOCK_ERROR
        });
        promise(in_time, || format!("{name} is sent after its lease"))?;
        let earlier = self.facts.receipts.insert((id, number), Receipt { is_accepted });
        promise(earlier.is_none(), || format!("I5: {name} is sent twice"))?;
        let is_frozen = bytes == self.facts.frozen[&id].as_bytes();
        promise(is_frozen, || format!("I8: {name} is sent with other bytes"))?;
        promise(!claimed.callback_url.contains("//10."), || {
            format!("I9: {name} is sent to {}", claimed.callback_url)
        })
    }

    /// Looks at the database after a step that wrote to it.
    pub(crate) fn check(&mut self) -> Step {
        let mut now = Known::new();
        for (place, deliveries) in self.deliveries()?.into_iter().enumerate() {
            let open = deliveries.iter().filter(|delivery| delivery.completed_at.is_none()).count();
            promise(open <= 1, || format!("I10: {open} deliveries of a run are open"))?;
            let automatic = deliveries.iter().filter(|delivery| delivery.is_automatic).count();
            let is_announced = self.runs[place].is_announced;
            promise(automatic == usize::from(is_announced), || {
                format!("a run is announced {automatic} times")
            })?;
            for delivery in deliveries {
                if self.facts.known.get(&delivery.id) != Some(&delivery) {
                    self.check_delivery(&delivery, self.runs[place].is_erased)?;
                }
                now.insert(delivery.id, delivery);
            }
        }
        let vanished = self.facts.known.keys().find(|id| !now.contains_key(id));
        promise(vanished.is_none(), || format!("I1: delivery {vanished:?} has vanished"))?;
        self.facts.known = now;
        Ok(())
    }

    fn check_delivery(&mut self, delivery: &Delivery, is_erased: bool) -> Step {
        if !self.facts.order.contains(&delivery.id) {
            self.facts.order.push(delivery.id);
            self.facts.frozen.insert(delivery.id, delivery.payload_bytes.clone());
        }
        let place = self.facts.place(delivery.id);
        let under_way = i32::from(delivery.status_code == DeliveryStatus::Delivering);
        let numbers: Vec<_> = delivery.attempts.iter().map(|attempt| attempt.attempt_number).collect();
        let expected: Vec<_> = (1..=delivery.attempt_count - under_way).collect();
        promise(numbers == expected, || format!("I3: d{place} has attempts {numbers:?}"))?;
        let is_accepted = delivery.attempts.iter().any(|attempt| !is_failure(attempt));
        let has_succeeded = delivery.status_code == DeliveryStatus::Succeeded;
        promise(!has_succeeded || is_accepted, || format!("I6: d{place} succeeded without a success"))?;
        let before = self.facts.known.get(&delivery.id);
        let was_terminal = before.is_some_and(|before| before.completed_at.is_some());
        let same = before.is_none_or(|before| {
            (before.status_code, before.completed_at, before.attempt_count, before.failure_reason_code)
                == (
                    delivery.status_code,
                    delivery.completed_at,
                    delivery.attempt_count,
                    delivery.failure_reason_code,
                )
        });
        promise(!was_terminal || same, || format!("I2: d{place} changed after its end"))?;
        // Erasing is the one exception to I2 and I8.
        let stands = if is_erased { "{}" } else { self.facts.frozen[&delivery.id].as_str() };
        promise(delivery.payload_bytes == stands, || format!("I8: the payload of d{place} changed"))?;
        let mut records = before.map(|before| before.attempts.clone()).unwrap_or_default();
        if is_erased {
            records.iter_mut().for_each(|record| record.response_body = None);
            let left = delivery.attempts.iter().any(|attempt| attempt.response_body.is_some());
            promise(!left, || format!("an answer to d{place} is left, or comes, after the erasure"))?;
        }
        for (index, attempt) in delivery.attempts.iter().enumerate() {
            let earlier = records.get(index);
            if earlier != Some(attempt) {
                if is_erased && earlier.is_some() {
                    self.saw("a late result of an erased run");
                }
                self.check_record(place, delivery.id, earlier, attempt)?;
            }
        }
        Ok(())
    }

    /// A record that is new, or has changed.
    fn check_record(
        &mut self,
        place: usize,
        id: DeliveryId,
        earlier: Option<&Attempt>,
        attempt: &Attempt,
    ) -> Step {
        let number = attempt.attempt_number;
        let name = format!("the record of attempt {number} of d{place}");
        promise(earlier.is_none_or(is_unknown), || format!("I2: {name} changed: {earlier:?}"))?;
        if !is_failure(attempt) {
            let receipt = self.facts.receipts.get(&(id, number));
            let was_accepted = receipt.is_some_and(|receipt| receipt.is_accepted);
            promise(was_accepted, || format!("I6: {name} is a success, and nobody answered 2xx"))?;
        }
        let Some(claim) = self.facts.claims.get_mut(&(place, number)) else {
            return promise(false, || format!("I4: {name} without a claim"));
        };
        claim.is_open = false;
        let text = attempt.error_message.as_deref().unwrap_or_default();
        let is_odd = is_unknown(attempt) || text.contains("not sent: ");
        promise(!is_odd || claim.is_disturbed, || format!("{name} has no explanation: {text}"))?;
        let was_sent = self.facts.receipts.contains_key(&(id, number));
        promise(!(was_sent && text.contains("not sent: ")), || format!("{name} is false: it was sent"))?;
        if earlier.is_some() {
            self.saw(if is_failure(attempt) { "a late failure" } else { "a late success" });
        }
        Ok(())
    }
}

fn is_failure(attempt: &Attempt) -> bool {
    attempt.error_message.is_some()
}

pub(crate) fn is_unknown(attempt: &Attempt) -> bool {
    attempt.error_message.as_ref().is_some_and(|text| text.starts_with("outcome_unknown: "))
}

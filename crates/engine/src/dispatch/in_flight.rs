//! Attempts in flight: admitted after their claim, sent when their destination has a slot, settled when they end.

use std::time::Duration;

use contracts::{AttemptNumber, Destination};

use super::Dispatch;
use super::events::{Action, AttemptKey, Now};
use crate::lease::{Claimed, HeldAttempt, Lease};
use crate::outcome::{LocalFailure, Measured, Outcome};
use crate::protection::{Protection, is_off};
use crate::result::{AttemptResult, HoldChange, Settlement};
use crate::settle::random_id_and_jitter;

/// A claimed attempt that waits for a slot or is being sent.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) held: HeldAttempt,
    pub(super) bytes: u64,
    pub(super) began: Duration,
    /// The request and the lease. `None` once the attempt is being sent.
    unsent: Option<(Box<Claimed>, Lease)>,
}

impl Dispatch {
    /// Adds a claimed attempt, to be sent as soon as its destination has a slot.
    pub(super) fn admit(&mut self, claimed: Claimed, lease: Lease, now: Now, actions: &mut Vec<Action>) {
        let held = claimed.held.clone();
        let (key, destination) = (held.key(), held.destination);
        let bytes = claimed.payload.len() as u64;
        self.destinations.claim(destination, now);
        self.bytes_in_flight += bytes;
        let unsent = Some((Box::new(claimed), lease));
        self.attempts.insert(key, InFlight { held, bytes, began: now.monotonic, unsent });
        self.ready.entry(destination).or_default().push_back(key);
        self.send_ready(destination, now, actions);
    }

    /// Sends claimed attempts of a destination while it has slots.
    fn send_ready(&mut self, destination: Destination, now: Now, actions: &mut Vec<Action>) {
        let Some(ready) = self.ready.get_mut(&destination) else { return };
        while self.destinations.can_begin(destination)
            && let Some(key) = ready.pop_front()
        {
            let Some(attempt) = self.attempts.get_mut(&key) else { continue };
            let Some((claimed, lease)) = attempt.unsent.take() else { continue };
            attempt.began = now.monotonic;
            self.destinations.begin(destination, now);
            self.troubles.begin();
            let send_before = match is_off(Protection::LeaseBeforeSend) {
                true => Duration::MAX,
                false => lease.send_before(self.limits.timeout),
            };
            actions.push(Action::Send { claimed, send_before });
        }
        if ready.is_empty() {
            self.ready.remove(&destination);
        }
    }

    /// Hands back the attempts claimed ahead for a destination.
    fn hand_back_ready(&mut self, destination: Destination, now: Now) {
        for key in self.ready.remove(&destination).unwrap_or_default() {
            let Some(attempt) = self.attempts.remove(&key) else { continue };
            self.bytes_in_flight -= attempt.bytes;
            self.destinations.give_back(destination, now);
            let not_sent = Outcome::NotSent(LocalFailure::OverLimit);
            let result = self.settle(attempt.held, not_sent, Measured::default(), now);
            self.recording.push(result, now.monotonic);
        }
    }

    pub(super) fn ended(
        &mut self,
        key: AttemptKey,
        outcome: Outcome,
        measured: Measured,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(attempt) = self.attempts.remove(&key) else { return };
        self.bytes_in_flight -= attempt.bytes;
        let destination = attempt.held.destination;
        let is_less = self.destinations.end(&attempt, outcome.signal(), now);
        self.troubles.end(&outcome, attempt.began, now, actions);
        let result = self.settle(attempt.held, outcome, measured, now);
        if let HoldChange::HoldUntil(until) = result.hold
            && !is_off(Protection::HoldRecorded)
        {
            self.destinations.hold(destination, until, now);
            let waiting = self.doorbells.forget(destination);
            self.acknowledge(&waiting, actions);
        }
        if let Settlement::HandedBack(at) = result.settlement {
            // Other attempts to the destination would fail in the same way.
            self.destinations.hold(destination, at, now);
        }
        if is_less || self.destinations.is_held(destination, now) {
            self.hand_back_ready(destination, now);
        } else {
            self.send_ready(destination, now, actions);
        }
        self.claiming.slot_freed(destination, now.monotonic);
        self.recording.push(result, now.monotonic);
    }

    /// Updates the number of unaccepted results by destination. A destination with many of them starts no
    /// more attempts, because they would take all slots.
    pub(super) fn note_unrecorded(&mut self, now: Now) {
        let unrecorded = self.recording.kept();
        if unrecorded != self.unrecorded {
            self.destinations.note_unrecorded(&unrecorded, now);
            let freed = self.unrecorded.keys().filter(|destination| !unrecorded.contains_key(destination));
            freed.for_each(|destination| self.claiming.slot_freed(*destination, now.monotonic));
            self.unrecorded = unrecorded;
        }
    }

    pub(super) fn settle(
        &mut self,
        mut held: HeldAttempt,
        outcome: Outcome,
        measured: Measured,
        now: Now,
    ) -> AttemptResult {
        if is_off(Protection::AttemptBudget) {
            held.max_attempts = AttemptNumber::MAX;
        }
        let (id, jitter_unit) = random_id_and_jitter(&mut self.rng, now.clock);
        let mut result = self.limits.retry.settle(&held, id, outcome, measured, now.clock, jitter_unit);
        if let Settlement::HandedBack(at) = result.settlement
            && is_off(Protection::HandBack)
        {
            result.settlement = Settlement::RetryAt(at);
        }
        result
    }
}

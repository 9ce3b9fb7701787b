//! What dispatchers do: the loops' order of the real steps, one step at a time.

use std::time::Duration;

use contracts::{ClaimId, FailureReason, Job};
use dispatcher::steps::{self, Found, Lease, Work};
use dispatcher::{Answer, Outcome};
use egress::Policy;
use rand::prelude::*;
use testkit::Fate;

use crate::actors::{Claim, InFlight, Result, State};
use crate::mutant::Mutant;
use crate::world::{Step, TIMEOUT, World, promise};

impl World<'_> {
    /// Begins a claim: of messages it holds, or of what is due.
    pub(crate) fn begin_claim(&mut self, d: usize, is_relay: bool) -> Step {
        let room = self.dispatchers[d].room();
        let heard: Vec<(u64, Job)> = self.dispatchers[d]
            .held
            .iter()
            .filter(|message| !self.dispatchers[d].served.contains(&message.number))
            .take(room)
            .map(|message| (message.number, message.job.clone()))
            .collect();
        let (messages, jobs): (Vec<u64>, Vec<Job>) = heard.into_iter().unzip();
        let (work, messages) = match is_relay {
            true => (Work::Relay { room }, Vec::new()),
            false => (Work::Doorbells(jobs), messages),
        };
        if self.is(Mutant::AckBeforeClaim) {
            for number in &messages {
                self.ack(d, *number)?;
            }
        }
        let id = ClaimId::new(self.now);
        let claim = Claim { id, work, messages, tried_by: None, ready_since: self.now };
        self.dispatchers[d].claim = Some(claim);
        self.try_claim(d)
    }

    /// Tries the claim that was begun, once more.
    pub(crate) fn try_claim(&mut self, d: usize) -> Step {
        let Some(mut claim) = self.dispatchers[d].claim.take() else { return Ok(()) };
        if self.is(Mutant::ClaimedAnew) {
            (claim.id, claim.tried_by) = (ClaimId::new(self.now), None);
        }
        let (fate, now, lease) = (self.fate(), self.time_of(d), self.lease());
        let this_try = self.monotonic();
        let mut found = Found::default();
        let no_lease = self.is(Mutant::NoLease);
        let answer = self.database.transaction(fate, |tx| {
            found = steps::claim(tx, now, lease, claim.id, &claim.work, claim.tried_by.is_some())?;
            if no_lease && matches!(claim.work, Work::Relay { .. }) {
                found.expired = store::expired_leases(tx, now + lease, 10)?;
            }
            Ok(())
        })?;
        // In the order of their acceptance, as ids are random.
        found.claimed.sort_by_key(|claimed| self.facts.place(claimed.held.delivery_id));
        found.expired.sort_by_key(|held| self.facts.place(held.delivery_id));
        self.tell(|facts| {
            let names: Vec<String> = found
                .claimed
                .iter()
                .map(|claimed| format!("{}/{}", facts.name(claimed.held.delivery_id), claimed.held.attempt))
                .collect();
            let expired = found.expired.len();
            format!(
                "dispatcher {d} claims {}: {fate:?}: {} ({expired} expired)",
                kind(&claim.work),
                names.join(" ")
            )
        });
        if fate != Fate::RolledBack && !found.by_earlier_try {
            self.note_claims(d, &found.claimed)?;
            if !found.claimed.is_empty() {
                self.check()?;
            }
        }
        if answer.is_none() && !self.is(Mutant::SentUnclaimed) {
            // As the intake: nothing is heard while the database is away.
            self.dispatchers[d].claim =
                Some(Claim { tried_by: Some(this_try), ready_since: self.now, ..claim });
            if !self.dispatchers[d].held.is_empty() {
                self.saw("messages left to others while the database is away");
                self.give_back(d);
            }
            return Ok(());
        }
        if found.by_earlier_try {
            self.saw("a claim whose commit came through unnoticed");
        }
        self.dispatchers[d].served.extend(claim.messages);
        let by_earlier_try = claim.tried_by.filter(|_| found.by_earlier_try);
        let lease = match found.claimed.first().zip(by_earlier_try) {
            Some((claimed, tried_by)) => {
                Lease::given_at(claimed.held.claimed_at, lease, now, this_try, tried_by)
            }
            None => Lease::since(this_try, lease),
        };
        for claimed in found.claimed {
            if self.dispatchers[d].room() == 0 {
                self.facts.disturb(Some(d)); // more than slots: only a claim that came through twice
                break;
            }
            let ready_since = self.now;
            self.dispatchers[d].attempts.push(InFlight {
                claimed,
                lease,
                state: State::Claimed,
                ready_since,
            });
        }
        for held in found.expired {
            self.saw("an attempt lost");
            let chance = self.rng.random_range(-1.0..=1.0);
            let finished = steps::lost(&held, &self.retry(), self.time_of(d), chance);
            self.dispatchers[d].results.push(Result { finished, has_slot: false, ready_since: self.now });
        }
        Ok(())
    }

    /// Acknowledges a message whose claim has committed.
    pub(crate) fn ack_served(&mut self, d: usize) -> Step {
        let number = self.dispatchers[d].served.remove(0);
        self.ack(d, number)
    }

    fn ack(&mut self, d: usize, number: u64) -> Step {
        // Not there any more: the connection it came on is gone, and so is the acknowledgement.
        let held = &mut self.dispatchers[d].held;
        let Some(place) = held.iter().position(|message| message.number == number) else { return Ok(()) };
        let message = held.remove(place);
        let id = message.job.delivery_id;
        self.tell(|facts| format!("dispatcher {d} acknowledges {}", facts.name(id)));
        let delivery = &self.facts.known[&id];
        let is_served = delivery.completed_at.is_some() || delivery.attempt_count >= message.job.attempt;
        promise(is_served, || "a job is acknowledged that could still be claimed".into())
    }

    /// Takes an attempt one step further.
    pub(crate) fn advance(&mut self, d: usize, index: usize) -> Step {
        let mut attempt = self.dispatchers[d].attempts.swap_remove(index);
        attempt.ready_since = self.now;
        let next = match attempt.state.clone() {
            State::Claimed => self.begin_sending(d, &attempt),
            State::Begun { began } => self.write(d, &attempt, began)?,
            State::Sent { outcome, .. } => State::Over { outcome },
            State::Over { outcome } => return self.settle(d, attempt, outcome),
        };
        attempt.state = next;
        self.dispatchers[d].attempts.push(attempt);
        Ok(())
    }

    fn begin_sending(&mut self, d: usize, attempt: &InFlight) -> State {
        let policy = Policy::default();
        if !self.is(Mutant::AnyAddress)
            && let Err(outcome) = steps::refuse(&attempt.claimed.callback_url, &policy)
        {
            self.saw("an address refused");
            return State::Over { outcome };
        }
        let began = self.judged_time(d);
        if began >= attempt.lease.send_before(TIMEOUT) && !self.is(Mutant::LeaseNotJudged) {
            self.saw("an attempt too late to begin");
            return State::Over { outcome: not_sent() };
        }
        State::Begun { began }
    }

    /// What leases are judged by.
    fn judged_time(&self, d: usize) -> Duration {
        let wall = self.dispatchers[d].host_error;
        let monotonic = self.monotonic();
        match self.mutant {
            Some(Mutant::LeaseByWallClock) => Duration::from_micros(
                monotonic.as_micros().try_into().unwrap_or(0_u64).saturating_add_signed(wall),
            ),
            _ => monotonic,
        }
    }

    fn write(
        &mut self,
        d: usize,
        attempt: &InFlight,
        began: Duration,
    ) -> std::result::Result<State, crate::world::Broken> {
        let is_judged = !self.is(Mutant::LeaseNotJudged) && !self.is(Mutant::WriteNotJudged);
        if self.judged_time(d) >= began + TIMEOUT && is_judged {
            self.saw("an attempt too late to write");
            return Ok(State::Over { outcome: not_sent() });
        }
        let status = match self.rng.random_range(0..100) {
            0..35 => Some(200),
            35..40 => Some(410),
            40..70 => Some(503),
            // Whatever the receiver did, its answer does not come through.
            _ => None,
        };
        let is_accepted = status == Some(200) || (status.is_none() && self.rng.random_bool(0.5));
        let mut bytes = attempt.claimed.payload.clone();
        if self.is(Mutant::PayloadRebuilt) {
            bytes.push(b' ');
        }
        let (id, number) = (attempt.claimed.held.delivery_id, attempt.claimed.held.attempt);
        self.tell(|facts| format!("dispatcher {d} sends {}/{number}: {status:?}", facts.name(id)));
        self.note_receipt(&attempt.claimed, &bytes, is_accepted)?;
        let left = (began + TIMEOUT).saturating_sub(self.monotonic());
        let (outcome, after) = match status {
            Some(status) => {
                let answer = Answer { status, body: "an answer".into(), retry_after: None };
                (Outcome::Answered(answer), left.mul_f64(self.rng.random_range(0.0..1.0)))
            }
            None if self.rng.random_bool(0.5) => (Outcome::failed(FailureReason::Timeout, "no answer"), left),
            None => (Outcome::failed(FailureReason::ConnectionError, "reset"), Duration::from_millis(5)),
        };
        Ok(State::Sent { outcome, at: self.now + after })
    }
}

fn not_sent() -> Outcome {
    Outcome::failed(FailureReason::Timeout, "not sent: too late")
}

fn kind(work: &Work) -> &'static str {
    match work {
        Work::Doorbells(_) => "what it heard",
        Work::Relay { .. } => "what is due",
    }
}

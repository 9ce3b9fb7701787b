//! The state machine of one dispatcher. A driver reports each [`Event`] and carries out each [`Action`]. The
//! machine does no IO; time and randomness are arguments.
//!
//! Its parts: doorbells waiting for a claim, claiming (the next source and the claim in progress), attempts
//! in flight with the limits of their destinations, recording of results, recovery of expired leases.

mod backoff;
mod claim_results;
mod claiming;
mod doorbells;
mod events;
mod in_flight;
mod limits;
mod pace;
mod recording;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use contracts::Destination;

use crate::outcome::LocalFailure;
use crate::protection::{Protection, is_off};

use self::backoff::SteppedOver;
use self::claiming::Claiming;
use self::doorbells::{Doorbells, is_stale};
use self::in_flight::InFlight;
use self::limits::{Destinations, Troubles};
use self::pace::{GATHERED, OUTAGE_PAUSE};
use self::recording::Recording;
use self::recovery::Schedule;

pub use self::events::{
    Action, AttemptKey, Batch, Claim, ClaimSource, Doorbell, Event, Limits, Now, Recorded, Recovery,
};
pub use self::pace::BATCH;

/// The interval at which unneeded holds are deleted and idle destinations forgotten.
const TIDYING_PERIOD: Duration = Duration::from_secs(60);

/// The state machine of one dispatcher.
#[derive(Debug)]
pub struct Dispatch {
    limits: Limits,
    rng: fastrand::Rng,
    attempts: BTreeMap<AttemptKey, InFlight>,
    /// Claimed attempts that wait for a slot of their destination.
    ready: BTreeMap<Destination, VecDeque<AttemptKey>>,
    bytes_in_flight: u64,
    destinations: Destinations,
    doorbells: Doorbells,
    claiming: Claiming,
    recording: Recording,
    /// The number of results that the database does not accept, by destination.
    unrecorded: BTreeMap<Destination, usize>,
    stepped_over: SteppedOver,
    recovery: Schedule,
    leases_stepped_over: SteppedOver,
    tidy_at: Duration,
    troubles: Troubles,
    is_stopping: bool,
    is_stopped: bool,
}

impl Dispatch {
    /// Returns a dispatcher that starts at `now`. `seed` must differ between dispatchers.
    pub fn new(limits: Limits, seed: u64, now: Now) -> Dispatch {
        let destinations = Destinations::new(limits.max_in_flight_per_destination);
        let mut rng = fastrand::Rng::with_seed(seed);
        let claiming = Claiming::new(now.monotonic, Destination::from(rng.i64(..)));
        Dispatch {
            troubles: Troubles::new(limits.max_in_flight),
            limits,
            rng,
            attempts: BTreeMap::new(),
            ready: BTreeMap::new(),
            bytes_in_flight: 0,
            destinations,
            doorbells: Doorbells::default(),
            claiming,
            recording: Recording::default(),
            unrecorded: BTreeMap::new(),
            stepped_over: SteppedOver::default(),
            recovery: Schedule::new(now.monotonic),
            leases_stepped_over: SteppedOver::default(),
            tidy_at: now.monotonic + TIDYING_PERIOD,
            is_stopping: false,
            is_stopped: false,
        }
    }

    /// Handles an event and returns the actions to carry out.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.handle_all([event], now)
    }

    /// Handles several events at once, which yields larger batches than handling them one by one.
    pub fn handle_all(&mut self, events: impl IntoIterator<Item = Event>, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        for event in events {
            self.note(event, now, &mut actions);
        }
        let old = self.doorbells.forget_old(now.monotonic);
        self.acknowledge(&old, &mut actions);
        actions.extend(self.recording.next(now.monotonic, self.is_busy()).into_iter().map(Action::Record));
        self.recover(now, &mut actions);
        self.tidy(now, &mut actions);
        self.claim(now, &mut actions);
        if self.is_stopping && !self.is_stopped && (self.is_idle() || is_off(Protection::Drain)) {
            self.is_stopped = true;
            actions.push(Action::Stopped);
        }
        actions
    }

    fn note(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        match event {
            Event::Doorbells(doorbells) => self.hear(doorbells, now, actions),
            Event::Claimed { claimed, is_recovered, poll } => {
                self.claimed(claimed, is_recovered, poll, now, actions);
            }
            Event::ClaimRefused { rows } => self.claim_refused(&rows, now, actions),
            Event::ClaimUnknown => self.claim_unknown(now, actions),
            Event::Ended { key, outcome, measured } => self.ended(key, outcome, measured, now, actions),
            Event::Recorded { id, effects } => {
                let done = self.recording.recorded(id, &effects, now.monotonic);
                actions.extend(done.into_iter().map(Action::Report));
                self.note_unrecorded(now);
            }
            Event::RecordRefused { id, is_violation } => {
                let lost = self.recording.refused(id, is_violation, now.monotonic);
                actions.extend(lost.into_iter().map(Action::Report));
                self.note_unrecorded(now);
            }
            Event::RecordUnknown { id } => self.recording.unknown(id, now.monotonic),
            Event::LeasesRecovered { count } => self.leases_recovered(count, now),
            Event::RecoveryRefused { rows } => self.recovery_refused(&rows, now, actions),
            Event::RecoveryUnknown => self.recovery_ended(now.monotonic + OUTAGE_PAUSE),
            Event::Tick => {}
            Event::Stop => self.stop(actions),
        }
    }

    /// Returns the monotonic time when [`Event::Tick`] is due if no other event happens.
    pub fn wake_at(&self) -> Option<Duration> {
        let running = (!self.is_stopping).then(|| {
            let recovery = (!self.recovery.is_running).then_some(self.recovery.next_at);
            [Some(self.tidy_at), recovery, self.next_claim_at()].into_iter().flatten().min()
        });
        [
            running.flatten(),
            self.recording.next_at(self.is_busy()),
            self.doorbells.next(),
            self.claiming.retry_at(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns how many more doorbells may be reported. Reserve room before pulling a message.
    pub fn doorbell_room(&self) -> usize {
        if self.is_stopping || self.claiming.is_paused() {
            return 0;
        }
        self.limits.max_in_flight.saturating_sub(self.doorbells.len())
    }

    /// Returns the number of attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.attempts.len()
    }

    /// Returns how many destinations it knows as ordinary, and how many as slowed: failures have lowered their limit
    /// below the initial one.
    pub fn known_destinations(&self) -> (usize, usize) {
        self.destinations.counts()
    }

    /// Returns the payload bytes in flight.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Returns the monotonic time since which the oldest unrecorded result has been waiting.
    pub fn unrecorded_since(&self) -> Option<Duration> {
        self.recording.oldest()
    }

    /// Returns the local reasons why attempts can't be sent.
    pub fn troubles(&self) -> Vec<LocalFailure> {
        self.troubles.causes()
    }

    /// Returns whether so much is in flight that more claims and results will follow soon. Waiting for them
    /// adds little delay.
    fn is_busy(&self) -> bool {
        self.attempts.len() >= GATHERED
    }

    fn is_idle(&self) -> bool {
        self.attempts.is_empty()
            && self.recording.len() == 0
            && !self.claiming.is_in_progress()
            && !self.recovery.is_running
    }

    fn hear(&mut self, doorbells: Vec<Doorbell>, now: Now, actions: &mut Vec<Action>) {
        let mut forgotten = Vec::new();
        for doorbell in doorbells {
            let destination = doorbell.job.destination;
            if self.is_stopping || self.claiming.is_paused() {
                actions.push(Action::GiveBack(vec![doorbell.token]));
            } else if self.destinations.is_held(destination, now) || is_stale(&doorbell, now) {
                forgotten.push(doorbell);
            } else if self.doorbells.of(destination) >= self.destinations.room(destination, now) {
                // The relay finds the delivery as soon as there is room.
                self.claiming.note_limited(destination);
                forgotten.push(doorbell);
            } else {
                self.doorbells.push(doorbell, now.monotonic);
            }
        }
        self.acknowledge(&forgotten, actions);
    }

    fn acknowledge(&self, doorbells: &[Doorbell], actions: &mut Vec<Action>) {
        if !doorbells.is_empty() {
            actions.push(Action::Acknowledge(doorbells.iter().map(|doorbell| doorbell.token).collect()));
        }
    }

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.is_stopping = true;
        let waiting = self.doorbells.forget_all();
        let mut tokens: Vec<u64> = waiting.iter().map(|doorbell| doorbell.token).collect();
        tokens.extend(self.claiming.abandon_retry());
        if !tokens.is_empty() {
            actions.push(Action::GiveBack(tokens));
        }
    }

    fn tidy(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.is_stopping || self.tidy_at > now.monotonic {
            return;
        }
        self.tidy_at = now.monotonic + TIDYING_PERIOD;
        self.destinations.forget_idle(now);
        self.troubles.fade(now, actions);
        self.stepped_over.forget_old(now.monotonic);
        self.leases_stepped_over.forget_old(now.monotonic);
        actions.push(Action::ForgetHolds);
    }
}

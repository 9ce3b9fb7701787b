//! One dispatcher's whole decision state. A driver tells it what happened ([`Event`]) and does what it says
//! ([`Action`]); it does no IO, and time and randomness are given to it.
//!
//! Its parts: doorbells waiting for their claim, claiming (whose turn it is, the claim in progress), attempts in
//! flight with the limits of their destinations, recording of results, recovery of expired leases.

mod backoff;
mod claiming;
mod doorbells;
mod limits;
mod recording;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use contracts::{AttemptId, AttemptNumber, ClaimId, DeliveryId, Destination, Timestamp};

use crate::fairness::Look;
use crate::lease::{Claimed, HeldAttempt, Lease};
use crate::outcome::{LocalFailure, Measured, Outcome};
use crate::protection::{Protection, is_off};
use crate::result::{AttemptResult, Effect, HoldChange, Settlement};
use crate::retry::RetryPolicy;

use self::backoff::SteppedOver;
use self::claiming::Claiming;
use self::doorbells::Doorbells;
use self::limits::{Destinations, Troubles};
use self::recording::Recording;

pub use self::claiming::{Claim, ClaimSource};
pub use self::doorbells::Doorbell;
pub use self::recording::{Batch, Recorded};

/// The most attempts claimed or recorded in one transaction: from here on the cost of a commit no longer shows.
pub const BATCH: usize = 256;

/// At full load, what could be claimed or recorded gathers into one transaction until it is so much …
const GATHERED: usize = 32;
/// … or the last one has committed so long ago.
const GATHERING: Duration = Duration::from_millis(4);

/// The wait before a database that is away is asked again.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);
/// How often expired leases are looked for.
const RECOVERY_PERIOD: Duration = Duration::from_millis(500);
/// How often holds that nobody needs are deleted, and idle destinations forgotten.
const TIDYING_PERIOD: Duration = Duration::from_secs(60);

/// The limits a dispatcher works within.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most attempts in progress at once, those included whose result is not recorded yet.
    pub max_in_flight: usize,
    /// The most bytes of payload in flight. One larger payload goes alone.
    pub max_in_flight_bytes: u64,
    /// The most attempts in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// How long a claimed attempt stays this dispatcher's. Longer than `timeout`.
    pub lease: Duration,
    /// The budget of one attempt.
    pub timeout: Duration,
    /// What follows a failed attempt.
    pub retry: RetryPolicy,
}

/// The present moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time that only goes forward: leases and waits are judged by it.
    pub monotonic: Duration,
    /// The clock that follows the database's.
    pub clock: Timestamp,
}

/// One attempt of this dispatcher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct AttemptKey {
    pub delivery_id: DeliveryId,
    pub claim_id: ClaimId,
}

impl HeldAttempt {
    /// Tells it from all other attempts.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

impl AttemptResult {
    /// Whose result it is.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Doorbells came.
    Doorbells(Vec<Doorbell>),
    /// The claim committed.
    Claimed {
        /// What it claimed.
        claimed: Vec<Claimed>,
        /// Whether an earlier try's commit turns out to have come through.
        is_recovered: bool,
        /// How the relay's look went, if it was one.
        look: Option<Look>,
    },
    /// The database refused the claim. Nothing was committed.
    ClaimRefused {
        /// The deliveries it was about, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is away, or the claim's commit had an unknown outcome.
    ClaimUnknown,
    /// An attempt is over.
    Ended {
        /// Which one.
        key: AttemptKey,
        /// What came of it.
        outcome: Outcome,
        /// What was measured.
        measured: Measured,
    },
    /// A batch committed.
    Recorded {
        /// The batch's number.
        id: u64,
        /// What became of each of its results, in their order.
        effects: Vec<Effect>,
    },
    /// The database refused a batch. Nothing was committed.
    RecordRefused {
        /// The batch's number.
        id: u64,
        /// Whether it refused the data itself, which no waiting changes.
        is_violation: bool,
    },
    /// The database is away, or a batch's commit had an unknown outcome.
    RecordUnknown {
        /// The batch's number.
        id: u64,
    },
    /// Expired leases were recorded: that many.
    LeasesRecovered {
        /// How many.
        count: usize,
    },
    /// The database refused to record expired leases.
    RecoveryRefused {
        /// The deliveries it was about, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is away.
    RecoveryUnknown,
    /// Time has passed.
    Tick,
    /// Claim nothing more; finish what is in flight.
    Stop,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Claim in one transaction; at most one is in progress.
    Claim(Claim),
    /// Acknowledge these doorbells.
    Acknowledge(Vec<u64>),
    /// Leave these doorbells to others.
    GiveBack(Vec<u64>),
    /// Send an attempt.
    Send {
        /// What to send.
        claimed: Box<Claimed>,
        /// By when it must have begun, on monotonic time; otherwise it is not sent.
        send_before: Duration,
    },
    /// Record results in one transaction.
    Record(Batch),
    /// A result is done with: log it.
    Report(Recorded),
    /// Record expired leases in one transaction; at most one is in progress.
    RecoverLeases(Recovery),
    /// Tidy up: delete holds that nobody needs any more, fill in destinations that are unknown.
    ForgetHolds,
    /// Take no more doorbells: the database is away.
    Pause,
    /// Take doorbells again.
    Resume,
    /// A delivery is stepped over that long, as the database refuses to move it.
    StepOver {
        /// Which one.
        delivery_id: DeliveryId,
        /// How long.
        wait: Duration,
    },
    /// Attempts can't be sent for a reason of ours: log it once.
    Trouble(LocalFailure),
    /// They can be again.
    TroubleOver(LocalFailure),
    /// Nothing is left to do.
    Stopped,
}

/// A transaction that records expired leases.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// At most so many.
    pub limit: usize,
    /// Left alone, as the database refused them lately.
    pub stepped_over: Vec<DeliveryId>,
    /// Whether to begin with those that ended last: those that ended first can't even be read.
    pub is_reversed: bool,
    retry: RetryPolicy,
    rng: fastrand::Rng,
}

impl Recovery {
    /// Settles one of them.
    pub fn settle(&mut self, held: &HeldAttempt, now: Timestamp) -> AttemptResult {
        let (id, jitter_unit) = random_id_and_jitter(&mut self.rng, now);
        self.retry.settle_lost(held, id, now, jitter_unit)
    }
}

fn random_id_and_jitter(rng: &mut fastrand::Rng, now: Timestamp) -> (AttemptId, f64) {
    (AttemptId::with_random(now, rng.u128(..)), rng.f64() * 2.0 - 1.0)
}

/// One dispatcher's decisions.
#[derive(Debug)]
pub struct Dispatch {
    limits: Limits,
    rng: fastrand::Rng,
    attempts: BTreeMap<AttemptKey, InFlight>,
    /// Those that wait for a slot of their destination's.
    ready: BTreeMap<Destination, VecDeque<AttemptKey>>,
    bytes_in_flight: u64,
    destinations: Destinations,
    doorbells: Doorbells,
    claiming: Claiming,
    recording: Recording,
    /// Results that the database does not take, of each destination.
    unrecorded: BTreeMap<Destination, usize>,
    stepped_over: SteppedOver,
    recovery: Schedule,
    leases_stepped_over: SteppedOver,
    tidy_at: Duration,
    troubles: Troubles,
    is_stopping: bool,
    is_stopped: bool,
}

/// An attempt that is claimed, and being sent or about to be.
#[derive(Debug)]
struct InFlight {
    held: HeldAttempt,
    bytes: u64,
    began: Duration,
    /// What to send, until it is.
    unsent: Option<(Box<Claimed>, Lease)>,
}

/// When expired leases are looked for next, and how many at once.
#[derive(Debug)]
struct Schedule {
    next_at: Duration,
    limit: usize,
    is_reversed: bool,
    is_running: bool,
}

impl Dispatch {
    /// A dispatcher that begins at `now`. `seed` must be another one for each.
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
            recovery: Schedule {
                next_at: now.monotonic,
                limit: BATCH,
                is_reversed: false,
                is_running: false,
            },
            leases_stepped_over: SteppedOver::default(),
            tidy_at: now.monotonic + TIDYING_PERIOD,
            is_stopping: false,
            is_stopped: false,
        }
    }

    /// Takes note of what happened, and returns what is to be done.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.handle_all([event], now)
    }

    /// The same for several events at once, which makes larger batches than one after the other would.
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
            Event::Claimed { claimed, is_recovered, look } => {
                self.claimed(claimed, is_recovered, look, now, actions);
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

    /// When [`Event::Tick`] is due if nothing else happens, on monotonic time.
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

    /// How many more doorbells it has room for. Take a slot before pulling a message.
    pub fn doorbell_room(&self) -> usize {
        if self.is_stopping || self.claiming.is_paused() {
            return 0;
        }
        self.limits.max_in_flight.saturating_sub(self.doorbells.len())
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.attempts.len()
    }

    /// Bytes of payload in flight.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Since when its oldest result that is not recorded yet has been waiting, on monotonic time.
    pub fn unrecorded_since(&self) -> Option<Duration> {
        self.recording.oldest()
    }

    /// Why attempts can't be sent, if for a reason of ours.
    pub fn troubles(&self) -> Vec<LocalFailure> {
        self.troubles.causes()
    }

    /// Whether so much is in flight that more will soon be ready beside what is: waiting for it delays nobody for long.
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
            } else if self.destinations.is_held(destination, now) {
                forgotten.push(doorbell);
            } else if self.doorbells.of(destination) >= self.destinations.room(destination, now) {
                // Found again as soon as there is room.
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

    /// Takes an attempt that was claimed, and sends it as soon as its destination has a slot.
    fn admit(&mut self, claimed: Claimed, lease: Lease, now: Now, actions: &mut Vec<Action>) {
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

    /// Sends what was claimed for a destination and has a slot now.
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

    /// Hands back what was claimed ahead for a destination.
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

    fn ended(
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
            // The others would fare the same here.
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

    /// A destination with many results that the database does not take begins no more attempts: they would take all slots.
    fn note_unrecorded(&mut self, now: Now) {
        let unrecorded = self.recording.kept();
        if unrecorded != self.unrecorded {
            self.destinations.note_unrecorded(&unrecorded, now);
            let freed = self.unrecorded.keys().filter(|destination| !unrecorded.contains_key(destination));
            freed.for_each(|destination| self.claiming.slot_freed(*destination, now.monotonic));
            self.unrecorded = unrecorded;
        }
    }

    fn settle(
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

    fn stop(&mut self, actions: &mut Vec<Action>) {
        self.is_stopping = true;
        let waiting = self.doorbells.forget_all();
        let mut tokens: Vec<u64> = waiting.iter().map(|doorbell| doorbell.token).collect();
        tokens.extend(self.claiming.abandon_retry());
        if !tokens.is_empty() {
            actions.push(Action::GiveBack(tokens));
        }
    }

    fn recover(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.is_stopping || self.recovery.is_running || self.recovery.next_at > now.monotonic {
            return;
        }
        self.recovery.is_running = true;
        actions.push(Action::RecoverLeases(Recovery {
            limit: self.recovery.limit,
            stepped_over: self.leases_stepped_over.ids(now.monotonic),
            is_reversed: self.recovery.is_reversed,
            retry: self.limits.retry.clone(),
            rng: self.rng.fork(),
        }));
    }

    fn leases_recovered(&mut self, count: usize, now: Now) {
        let is_full = count >= self.recovery.limit;
        self.recovery.limit = (self.recovery.limit * 2).min(BATCH);
        self.recovery_ended(if is_full { now.monotonic } else { now.monotonic + RECOVERY_PERIOD });
    }

    fn recovery_refused(&mut self, rows: &[DeliveryId], now: Now, actions: &mut Vec<Action>) {
        if let [delivery_id] = *rows {
            let wait = self.leases_stepped_over.add(delivery_id, now.monotonic);
            actions.push(Action::StepOver { delivery_id, wait });
            self.recovery_ended(now.monotonic);
        } else {
            self.recovery.limit = (self.recovery.limit.min(rows.len().max(2)) / 2).max(1);
            self.recovery.is_reversed ^= rows.is_empty();
            let pause = if rows.is_empty() { OUTAGE_PAUSE } else { Duration::ZERO };
            self.recovery_ended(now.monotonic + pause);
        }
    }

    fn recovery_ended(&mut self, next_at: Duration) {
        self.recovery.is_running = false;
        self.recovery.next_at = next_at;
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

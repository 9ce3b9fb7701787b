//! The state machine of one dispatcher. A driver reports each [`Event`] and carries out each [`Action`]. The
//! machine does no IO; time and randomness are arguments.
//!
//! Its parts: doorbells waiting for a claim, claiming (the next source and the claim in progress), attempts
//! in flight with the limits of their destinations, recording of results, recovery of expired leases.

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

/// The most attempts claimed or recorded in one transaction. Beyond it the cost of a commit is negligible.
pub const BATCH: usize = 256;

/// At full load, claims and results are gathered into one transaction until there are this many …
const GATHERED: usize = 32;
/// … or the last commit was this long ago.
const GATHERING: Duration = Duration::from_millis(4);

/// The wait before the next transaction while the database is unavailable.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);
/// The poll interval for expired leases.
const RECOVERY_PERIOD: Duration = Duration::from_millis(500);
/// The interval at which unneeded holds are deleted and idle destinations forgotten.
const TIDYING_PERIOD: Duration = Duration::from_secs(60);

/// The limits of a dispatcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The most attempts in progress at once, including those whose result is not recorded yet.
    pub max_in_flight: usize,
    /// The most payload bytes in flight. A single larger payload is sent alone.
    pub max_in_flight_bytes: u64,
    /// The most attempts in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// How long a claimed attempt belongs to this dispatcher. Longer than `timeout`.
    pub lease: Duration,
    /// The timeout of one attempt.
    pub timeout: Duration,
    /// The retry policy.
    pub retry: RetryPolicy,
}

/// The current time on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for leases and waits.
    pub monotonic: Duration,
    /// The wall clock, which follows the database's.
    pub clock: Timestamp,
}

/// Identifies one attempt of this dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct AttemptKey {
    pub delivery_id: DeliveryId,
    pub claim_id: ClaimId,
}

impl HeldAttempt {
    /// Returns the attempt's key.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

impl AttemptResult {
    /// Returns the key of the attempt that has this result.
    pub fn key(&self) -> AttemptKey {
        AttemptKey { delivery_id: self.delivery_id, claim_id: self.claim_id }
    }
}

/// An event that the driver reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Doorbells arrived.
    Doorbells(Vec<Doorbell>),
    /// The claim committed.
    Claimed {
        /// The claimed attempts.
        claimed: Vec<Claimed>,
        /// Whether an earlier try of the claim turned out to have committed.
        is_recovered: bool,
        /// The result of the relay's poll. `None` if the claim was by doorbells, or recovered.
        look: Option<Look>,
    },
    /// The database refused the claim. Nothing was committed.
    ClaimRefused {
        /// The deliveries to be claimed, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is unavailable, or the claim's commit had an unknown outcome.
    ClaimUnknown,
    /// An attempt has ended.
    Ended {
        /// The attempt.
        key: AttemptKey,
        /// Its outcome.
        outcome: Outcome,
        /// Its measurements.
        measured: Measured,
    },
    /// A batch committed.
    Recorded {
        /// The batch's number.
        id: u64,
        /// The effect of each of its results, in order.
        effects: Vec<Effect>,
    },
    /// The database refused a batch. Nothing was committed.
    RecordRefused {
        /// The batch's number.
        id: u64,
        /// Whether the data violates a constraint, so that a retry can't help.
        is_violation: bool,
    },
    /// The database is unavailable, or a batch's commit had an unknown outcome.
    RecordUnknown {
        /// The batch's number.
        id: u64,
    },
    /// Expired leases were recorded.
    LeasesRecovered {
        /// Their number.
        count: usize,
    },
    /// The database refused to record expired leases.
    RecoveryRefused {
        /// The deliveries with these leases, as far as they are known.
        rows: Vec<DeliveryId>,
    },
    /// The database is unavailable.
    RecoveryUnknown,
    /// Time has passed.
    Tick,
    /// Stop claiming and finish the attempts in flight.
    Stop,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Claim in one transaction; at most one is in progress.
    Claim(Claim),
    /// Acknowledge these doorbells.
    Acknowledge(Vec<u64>),
    /// Return these doorbells unacknowledged, for other dispatchers.
    GiveBack(Vec<u64>),
    /// Send an attempt.
    Send {
        /// The attempt and its request.
        claimed: Box<Claimed>,
        /// The monotonic time before which it must start. Otherwise it is not sent.
        send_before: Duration,
    },
    /// Record results in one transaction.
    Record(Batch),
    /// Log a result that is finished.
    Report(Recorded),
    /// Record expired leases in one transaction; at most one is in progress.
    RecoverLeases(Recovery),
    /// Delete holds that are no longer needed.
    ForgetHolds,
    /// Take no more doorbells: the database is unavailable.
    Pause,
    /// Take doorbells again.
    Resume,
    /// Log that a delivery is skipped for a while because the database refuses to change it.
    StepOver {
        /// The delivery.
        delivery_id: DeliveryId,
        /// How long it is skipped.
        wait: Duration,
    },
    /// Log that attempts can't be sent for this local reason.
    Trouble(LocalFailure),
    /// Log that this reason no longer applies.
    TroubleOver(LocalFailure),
    /// The dispatcher has stopped, with nothing left to do.
    Stopped,
}

/// A transaction that records expired leases.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovery {
    /// The most leases to record.
    pub limit: usize,
    /// Deliveries to skip because the database recently refused them.
    pub stepped_over: Vec<DeliveryId>,
    /// Whether to begin with the leases that ended last, because those that ended first can't be read.
    pub is_reversed: bool,
    retry: RetryPolicy,
    rng: fastrand::Rng,
}

impl Recovery {
    /// Settles one of the attempts with an expired lease.
    pub fn settle(&mut self, held: &HeldAttempt, now: Timestamp) -> AttemptResult {
        let (id, jitter_unit) = random_id_and_jitter(&mut self.rng, now);
        self.retry.settle_lost(held, id, now, jitter_unit)
    }
}

fn random_id_and_jitter(rng: &mut fastrand::Rng, now: Timestamp) -> (AttemptId, f64) {
    (AttemptId::with_random(now, rng.u128(..)), rng.f64() * 2.0 - 1.0)
}

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

/// A claimed attempt that waits for a slot or is being sent.
#[derive(Debug)]
struct InFlight {
    held: HeldAttempt,
    bytes: u64,
    began: Duration,
    /// The request and the lease. `None` once the attempt is being sent.
    unsent: Option<(Box<Claimed>, Lease)>,
}

/// The schedule of lease recovery: the time and size of the next transaction.
#[derive(Debug)]
struct Schedule {
    next_at: Duration,
    limit: usize,
    is_reversed: bool,
    is_running: bool,
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
            } else if self.destinations.is_held(destination, now) {
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

    /// Adds a claimed attempt, to be sent as soon as its destination has a slot.
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

//! Claiming: the claim in progress and the source of the next one. Three sources take turns: doorbells,
//! destinations known to have more due than their limit, and all due deliveries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use contracts::{ClaimId, DeliveryId, Destination, Job};

use super::{Action, BATCH, Dispatch, GATHERED, GATHERING, Now, OUTAGE_PAUSE};
use crate::fairness::{ByteRoom, Fit, Look, RelayPlan};
use crate::lease::{Claimed, Lease};
use crate::outcome::{LocalFailure, Measured, Outcome};
use crate::protection::{Protection, is_off};

/// The relay's poll interval for due deliveries. A retry is late by at most this, plus its claim.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Upper bound of the poll interval while polls are slow, such as when a dump keeps PostgreSQL from removing
/// dead rows.
const LONGEST_POLL_INTERVAL: Duration = Duration::from_secs(3);
/// The most destinations remembered as limited. The walk over all destinations finds the others.
const MOST_LIMITED: usize = 1_000;
/// The most deliveries refused in a row that are blamed on their own rows. Beyond that the database may be at
/// fault, and claims pause as if it were unavailable.
const MOST_REFUSED: u32 = 4;

/// A claim to make in one transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The claim's id, the same in every try of this claim and unique to it.
    pub id: ClaimId,
    /// The source of the claim's attempts.
    pub source: ClaimSource,
    /// Whether an earlier try may have committed. Attempts already under this id then belong to this
    /// dispatcher.
    pub is_retry: bool,
}

/// The source of a claim's attempts.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimSource {
    /// The attempts that doorbells ask for.
    Doorbells(Vec<Job>),
    /// The deliveries due in the database.
    Relay(RelayPlan),
}

/// The state of claiming.
#[derive(Debug)]
pub(super) struct Claiming {
    in_progress: Option<InProgress>,
    /// The source of the last claim.
    last: Turn,
    /// The time of the next poll for due deliveries.
    look_at: Duration,
    cursor: Option<Destination>,
    has_backlog: bool,
    /// The totals of the current walk over the destinations.
    circle: Circle,
    /// The number of consecutive polls that claimed nothing.
    fruitless_looks: u32,
    /// Destinations with more attempts due than their limit.
    limited: BTreeSet<Destination>,
    /// When a slot of a limited destination was freed.
    freed_at: Option<Duration>,
    /// The size of a payload that waits for free bytes.
    reserved: Option<u64>,
    /// The most attempts per claim. Halved when a claim is refused, doubled when one commits.
    limit: usize,
    /// When the last claim committed.
    ended_at: Duration,
    /// The number of deliveries refused one by one since then.
    refused: u32,
    paused_until: Duration,
}

#[derive(Debug, Default)]
struct Circle {
    claimed: usize,
    took: Duration,
}

#[derive(Debug)]
struct InProgress {
    claim: Claim,
    tokens: Vec<u64>,
    /// When this try began.
    began: Duration,
    /// When the last try ended. `None` during the first one.
    tried_by: Option<Duration>,
    /// When the next try begins, if the last one has ended.
    retry_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Doorbells,
    Limited,
    Due,
}

impl Claiming {
    pub(super) fn new(now: Duration, cursor: Destination) -> Claiming {
        Claiming {
            in_progress: None,
            last: Turn::Due,
            look_at: now,
            // Random, so that dispatchers don't compete for the same rows.
            cursor: Some(cursor),
            has_backlog: false,
            circle: Circle::default(),
            fruitless_looks: 0,
            limited: BTreeSet::new(),
            freed_at: None,
            reserved: None,
            limit: BATCH,
            ended_at: Duration::ZERO,
            refused: 0,
            paused_until: Duration::ZERO,
        }
    }

    pub(super) fn is_in_progress(&self) -> bool {
        self.in_progress.is_some()
    }

    /// Returns whether doorbells are paused because the database is unavailable.
    pub(super) fn is_paused(&self) -> bool {
        self.in_progress.as_ref().is_some_and(|claim| claim.tried_by.is_some())
    }

    pub(super) fn retry_at(&self) -> Option<Duration> {
        self.in_progress.as_ref()?.retry_at
    }

    /// Notes that a destination has more attempts due than it may have now.
    pub(super) fn note_limited(&mut self, destination: Destination) {
        if self.limited.len() < MOST_LIMITED {
            self.limited.insert(destination);
        }
    }

    pub(super) fn slot_freed(&mut self, destination: Destination, now: Duration) {
        if self.limited.contains(&destination) {
            self.freed_at.get_or_insert(now);
        }
    }

    /// Gives up a claim that waits for its next try. Returns its doorbells' tokens.
    pub(super) fn abandon_retry(&mut self) -> Vec<u64> {
        let waiting = self.in_progress.take_if(|claim| claim.retry_at.is_some());
        waiting.map(|claim| claim.tokens).unwrap_or_default()
    }
}

impl Dispatch {
    /// Begins or retries a claim if there is one to make.
    pub(super) fn claim(&mut self, now: Now, actions: &mut Vec<Action>) {
        if let Some(claim) = &mut self.claiming.in_progress {
            if claim.retry_at.is_some_and(|at| at <= now.monotonic) {
                if is_off(Protection::ClaimRecovered) {
                    claim.claim.id = ClaimId::with_random(now.clock, self.rng.u128(..));
                } else {
                    claim.claim.is_retry = true;
                }
                (claim.retry_at, claim.began) = (None, now.monotonic);
                actions.push(Action::Claim(claim.claim.clone()));
            }
            return;
        }
        let room = self.room();
        if self.is_stopping || room == 0 || self.claim_paused_until() > now.monotonic {
            return;
        }
        // Sources take turns, so that no source starves another.
        let order = match self.claiming.last {
            Turn::Doorbells => [Turn::Limited, Turn::Due, Turn::Doorbells],
            Turn::Limited => [Turn::Due, Turn::Doorbells, Turn::Limited],
            Turn::Due => [Turn::Doorbells, Turn::Limited, Turn::Due],
        };
        let next = order.into_iter().find_map(|turn| {
            let (source, tokens) = match turn {
                Turn::Doorbells => self.claim_of_doorbells(room, now, actions)?,
                Turn::Limited => (self.claim_of_limited(room, now)?, Vec::new()),
                Turn::Due => (self.claim_of_due(room, now)?, Vec::new()),
            };
            Some((turn, source, tokens))
        });
        let Some((turn, source, tokens)) = next else { return };
        let id = ClaimId::with_random(now.clock, self.rng.u128(..));
        let claim = Claim { id, source, is_retry: false };
        self.claiming.last = turn;
        if is_off(Protection::AcknowledgeAfterClaim) && !tokens.is_empty() {
            actions.push(Action::Acknowledge(tokens.clone()));
        }
        actions.push(Action::Claim(claim.clone()));
        self.claiming.in_progress =
            Some(InProgress { claim, tokens, began: now.monotonic, tried_by: None, retry_at: None });
    }

    /// Returns when the next claim can begin if no other event happens.
    pub(super) fn next_claim_at(&self) -> Option<Duration> {
        if self.claiming.is_in_progress() || self.room() == 0 || self.is_reserved() {
            return None;
        }
        let gathering =
            self.claiming.freed_at.or((self.doorbells.len() > 0).then_some(self.claiming.ended_at));
        let gathered = gathering.map(|at| at + GATHERING);
        let relay = (!is_off(Protection::Relay)).then_some(self.claiming.look_at);
        let next = [relay, gathered].into_iter().flatten().min()?;
        Some(next.max(self.claim_paused_until()))
    }

    fn claim_paused_until(&self) -> Duration {
        self.claiming.paused_until.max(self.troubles.paused_until())
    }

    /// Returns the number of free slots.
    fn room(&self) -> usize {
        let taken = self.attempts.len() + self.recording.len();
        let free = self.limits.max_in_flight.saturating_sub(taken);
        free.min(self.troubles.room()).min(self.claiming.limit)
    }

    fn byte_room(&self) -> ByteRoom {
        let free = self.limits.max_in_flight_bytes.saturating_sub(self.bytes_in_flight);
        let per_destination = self.limits.max_in_flight_bytes / 8;
        ByteRoom { free, is_idle: self.attempts.is_empty(), per_destination }
    }

    fn bytes_by_destination(&self) -> HashMap<Destination, u64> {
        self.attempts.values().fold(HashMap::new(), |mut bytes, attempt| {
            *bytes.entry(attempt.held.destination).or_default() += attempt.bytes;
            bytes
        })
    }

    /// Returns whether claims are blocked by a large payload that waits for free bytes.
    fn is_reserved(&self) -> bool {
        let ByteRoom { free, is_idle, .. } = self.byte_room();
        self.claiming.reserved.is_some_and(|bytes| bytes > free && !is_idle)
    }

    fn claim_of_doorbells(
        &mut self,
        room: usize,
        now: Now,
        actions: &mut Vec<Action>,
    ) -> Option<(ClaimSource, Vec<u64>)> {
        if self.doorbells.len() == 0 || self.is_reserved() {
            return None;
        }
        let count = self.doorbells.len().min(room);
        if self.is_busy() && count < GATHERED && self.claiming.ended_at + GATHERING > now.monotonic {
            return None;
        }
        let (mut bytes, mut in_flight) = (self.byte_room(), self.bytes_by_destination());
        let (mut full, mut begun) = (BTreeSet::new(), BTreeMap::<Destination, usize>::new());
        let destinations = &self.destinations;
        let (taken, refused) = self.doorbells.take(room, |job| {
            let destination = job.destination;
            let begun = begun.entry(destination).or_default();
            // A job without a payload size is left to the relay.
            let fits = *begun < destinations.room(destination, now)
                && job.payload_size.is_some_and(|size| {
                    bytes.judge(size, in_flight.entry(destination).or_default()) == Fit::Fits
                });
            if fits {
                *begun += 1;
            } else {
                full.insert(destination);
            }
            fits
        });
        self.acknowledge(&refused, actions);
        full.into_iter().for_each(|destination| {
            self.claiming.note_limited(destination);
            self.claiming.freed_at.get_or_insert(now.monotonic);
        });
        if taken.is_empty() {
            return None;
        }
        let (tokens, jobs) = taken.into_iter().map(|doorbell| (doorbell.token, doorbell.job)).unzip();
        Some((ClaimSource::Doorbells(jobs), tokens))
    }

    fn claim_of_limited(&mut self, room: usize, now: Now) -> Option<ClaimSource> {
        let freed_at = self.claiming.freed_at?;
        if is_off(Protection::Relay) {
            self.claiming.freed_at = None;
            return None;
        }
        if self.is_reserved() {
            return None;
        }
        let rooms = self.claiming.limited.iter().map(|of| (*of, self.destinations.room(*of, now)));
        let (mut targets, mut claimable) = (Vec::new(), 0_usize);
        for (destination, room) in rooms.filter(|(_, room)| *room > 0).take(BATCH) {
            targets.push(destination);
            claimable = claimable.saturating_add(room);
        }
        if targets.is_empty() {
            self.claiming.freed_at = None;
            return None;
        }
        if claimable.min(room) < GATHERED && freed_at + GATHERING > now.monotonic {
            return None;
        }
        self.claiming.freed_at = None;
        targets.iter().for_each(|destination| {
            self.claiming.limited.remove(destination);
        });
        Some(ClaimSource::Relay(RelayPlan { targets, ..self.plan(room, now) }))
    }

    fn claim_of_due(&self, room: usize, now: Now) -> Option<ClaimSource> {
        let is_time = self.claiming.look_at <= now.monotonic && !self.is_reserved();
        (is_time && !is_off(Protection::Relay)).then(|| ClaimSource::Relay(self.plan(room, now)))
    }

    fn plan(&self, room: usize, now: Now) -> RelayPlan {
        RelayPlan {
            room,
            bytes: self.byte_room(),
            bytes_in_flight: self.bytes_by_destination(),
            ordinary_room: self.destinations.ordinary_room(),
            rooms: self.destinations.rooms(now),
            cursor: self.claiming.cursor,
            has_backlog: self.claiming.has_backlog,
            stepped_over: self.stepped_over.ids(now.monotonic),
            targets: Vec::new(),
        }
    }

    pub(super) fn claimed(
        &mut self,
        claimed: Vec<Claimed>,
        is_recovered: bool,
        look: Option<Look>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let Some(claim) = self.claiming.in_progress.take() else { return };
        if claim.tried_by.is_some() {
            actions.push(Action::Resume);
        }
        if !claim.tokens.is_empty() {
            actions.push(Action::Acknowledge(claim.tokens.clone()));
        }
        self.claiming.limit = (self.claiming.limit * 2).min(BATCH);
        self.claiming.ended_at = now.monotonic;
        self.claiming.refused = 0;
        self.looked(&claim, claimed.len(), look, now);
        let (mut bytes, mut bytes_in_flight) = (self.byte_room(), self.bytes_by_destination());
        for claimed in claimed {
            self.stepped_over.remove(claimed.held.delivery_id);
            // Hands back attempts that a new hold forbids, and attempts over the limits, which are possible
            // if several tries of one claim committed.
            let destination = claimed.held.destination;
            let is_held = self.destinations.is_held(destination, now) && !claimed.held.is_probe;
            let is_within = !is_recovered
                || self.attempts.len() + self.recording.len() < self.limits.max_in_flight
                    && self.destinations.slots(destination) > 0
                    && bytes
                        .judge(claimed.payload.len() as u64, bytes_in_flight.entry(destination).or_default())
                        == Fit::Fits;
            if is_held || !is_within {
                let not_sent = Outcome::NotSent(LocalFailure::OverLimit);
                let result = self.settle(claimed.held, not_sent, Measured::default(), now);
                self.recording.push(result, now.monotonic);
                continue;
            }
            let lease = match (is_recovered && !is_off(Protection::LeasePerRow), claim.tried_by) {
                (true, Some(tried_by)) => {
                    let claimed_at = claimed.held.claimed_at;
                    Lease::given_at(claimed_at, self.limits.lease, now.clock, now.monotonic, tried_by)
                }
                _ => Lease::since(claim.began, self.limits.lease),
            };
            self.admit(claimed, lease, now, actions);
        }
    }

    /// Updates the state of the relay after a claim by poll.
    fn looked(&mut self, claim: &InProgress, count: usize, look: Option<Look>, now: Now) {
        let ClaimSource::Relay(plan) = &claim.claim.source else { return };
        let Some(look) = look else {
            // An earlier try had committed. It doesn't show what else is due.
            self.note_targets(&plan.targets, now);
            self.claiming.look_at = now.monotonic;
            return;
        };
        self.claiming.reserved = look.too_large;
        let bytes = if look.limited.is_empty() { HashMap::new() } else { self.bytes_by_destination() };
        for destination in look.limited {
            self.claiming.note_limited(destination);
            let was_freed = self.destinations.room(destination, now) > plan.room_of(destination)
                || bytes.get(&destination) < plan.bytes_in_flight.get(&destination);
            if was_freed {
                // During the poll.
                self.claiming.freed_at.get_or_insert(now.monotonic);
            } else {
                self.destinations.fill(destination);
            }
        }
        if !plan.targets.is_empty() {
            self.note_targets(&look.left, now);
            return;
        }
        let claiming = &mut self.claiming;
        (claiming.cursor, claiming.has_backlog) = (look.cursor, look.has_backlog);
        claiming.circle.claimed += count;
        claiming.circle.took += now.monotonic.saturating_sub(claim.began);
        let goes_on =
            look.has_more || look.cursor.is_some() || (look.has_backlog && claiming.circle.claimed > 0);
        let circle = match look.cursor {
            Some(_) => None,
            None => Some(std::mem::take(&mut claiming.circle)),
        };
        claiming.fruitless_looks = if count > 0 { 0 } else { claiming.fruitless_looks.saturating_add(1) };
        claiming.look_at = now.monotonic
            + match circle {
                _ if goes_on && count > 0 => GATHERING,
                // There was room for some destinations only, and their due deliveries could not be claimed.
                _ if look.has_more => pause_after(claiming.fruitless_looks),
                _ if goes_on => Duration::ZERO,
                circle => poll_interval(circle.unwrap_or_default().took),
            };
        if is_off(Protection::Circle) {
            (claiming.cursor, claiming.has_backlog) = (None, false);
        }
    }

    /// Schedules another poll of these destinations as soon as there is room.
    fn note_targets(&mut self, targets: &[Destination], now: Now) {
        if !targets.is_empty() {
            targets.iter().for_each(|destination| self.claiming.note_limited(*destination));
            self.claiming.freed_at.get_or_insert(now.monotonic);
        }
    }

    pub(super) fn claim_refused(&mut self, rows: &[DeliveryId], now: Now, actions: &mut Vec<Action>) {
        let Some(claim) = self.claiming.in_progress.take() else { return };
        let claiming = &mut self.claiming;
        if claim.tried_by.is_some() {
            actions.push(Action::Resume);
        }
        if !claim.tokens.is_empty() {
            actions.push(Action::Acknowledge(claim.tokens));
        }
        claiming.limit = (claiming.limit / 2).max(1);
        let count = match &claim.claim.source {
            ClaimSource::Doorbells(jobs) => {
                // The relay claims them, fewer at a time.
                jobs.iter().for_each(|job| claiming.note_limited(job.destination));
                jobs.len()
            }
            ClaimSource::Relay(plan) => {
                // If not even the rows could be read, the targets are left to the walk over all destinations.
                let targets = plan.targets.iter().filter(|_| !rows.is_empty());
                targets.for_each(|destination| claiming.note_limited(*destination));
                rows.len()
            }
        };
        claiming.limit = claiming.limit.min(count.max(2) / 2).max(1);
        claiming.freed_at = Some(now.monotonic);
        claiming.look_at = now.monotonic;
        match (rows, &claim.claim.source) {
            ([delivery_id], ClaimSource::Relay(_)) if !is_off(Protection::StepOver) => {
                let wait = self.stepped_over.add(*delivery_id, now.monotonic);
                claiming.refused += 1;
                if claiming.refused > MOST_REFUSED {
                    claiming.paused_until = now.monotonic + OUTAGE_PAUSE;
                }
                // Its destination may have more such rows: continue elsewhere.
                claiming.cursor = Some(Destination::from(self.rng.i64(..)));
                actions.push(Action::StepOver { delivery_id: *delivery_id, wait });
            }
            ([], ClaimSource::Relay(_)) => {
                // The rows here can't be read: continue elsewhere.
                claiming.cursor = Some(Destination::from(self.rng.i64(..)));
                claiming.has_backlog = true;
                claiming.paused_until = now.monotonic + OUTAGE_PAUSE;
            }
            _ => {}
        }
    }

    pub(super) fn claim_unknown(&mut self, now: Now, actions: &mut Vec<Action>) {
        let waiting = self.doorbells.forget_all();
        let mut tokens: Vec<u64> = waiting.iter().map(|doorbell| doorbell.token).collect();
        let Some(claim) = &mut self.claiming.in_progress else { return };
        claim.tried_by = Some(now.monotonic);
        claim.retry_at = Some(now.monotonic + OUTAGE_PAUSE);
        actions.push(Action::Pause);
        if self.is_stopping {
            tokens.extend(self.claiming.abandon_retry());
        }
        if !tokens.is_empty() {
            actions.push(Action::GiveBack(tokens));
        }
    }
}

/// Returns the poll interval after a walk whose polls took this long, so that most of the time is left for
/// doorbells.
fn poll_interval(took: Duration) -> Duration {
    (10 * took).clamp(POLL_INTERVAL, LONGEST_POLL_INTERVAL)
}

/// Returns the pause after this many consecutive polls that found due deliveries but claimed nothing.
fn pause_after(fruitless_looks: u32) -> Duration {
    GATHERING.saturating_mul(1 << fruitless_looks.saturating_sub(1).min(6)).min(POLL_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_polls_lengthen_the_poll_interval() {
        let intervals =
            [1, 30, 200, 60_000].map(|took| poll_interval(Duration::from_millis(took)).as_millis());
        assert_eq!(intervals, [250, 300, 2000, 3000]);
    }

    #[test]
    fn fruitless_polls_back_off() {
        assert_eq!([1, 2, 5, 7, 1_000].map(|looks| pause_after(looks).as_millis()), [4, 8, 64, 250, 250]);
    }
}

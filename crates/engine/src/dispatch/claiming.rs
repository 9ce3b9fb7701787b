//! Claiming: the claim in progress and the source of the next one. Three sources take turns: doorbells,
//! destinations known to have more due than their limit, and all due deliveries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use contracts::{ClaimId, Destination};

use super::Dispatch;
use super::events::{Action, Claim, ClaimSource, Now};
use super::pace::{BATCH, GATHERED, GATHERING};
use crate::fairness::{ByteRoom, Fit, RelayPlan};
use crate::protection::{Protection, is_off};

/// The most destinations remembered as limited. The walk over all destinations finds the others.
const MOST_LIMITED: usize = 1_000;

/// The state of claiming.
#[derive(Debug)]
pub(super) struct Claiming {
    pub(super) in_progress: Option<InProgress>,
    /// The source of the last claim.
    pub(super) last: Turn,
    /// The time of the next poll for due deliveries.
    pub(super) poll_at: Duration,
    pub(super) cursor: Option<Destination>,
    pub(super) has_backlog: bool,
    /// The totals of the current walk over the destinations.
    pub(super) circle: Circle,
    /// The number of consecutive polls that claimed nothing.
    pub(super) empty_polls: u32,
    /// Destinations with more attempts due than their limit.
    pub(super) limited: BTreeSet<Destination>,
    /// When a slot of a limited destination was freed.
    pub(super) freed_at: Option<Duration>,
    /// The size of a payload that waits for free bytes.
    pub(super) reserved: Option<u64>,
    /// The most attempts per claim. Halved when a claim is refused, doubled when one commits.
    pub(super) limit: usize,
    /// When the last claim committed.
    pub(super) ended_at: Duration,
    /// The number of deliveries refused one by one since then.
    pub(super) refused: u32,
    pub(super) paused_until: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Circle {
    pub(super) claimed: usize,
    pub(super) took: Duration,
}

#[derive(Debug)]
pub(super) struct InProgress {
    pub(super) claim: Claim,
    pub(super) tokens: Vec<u64>,
    /// When this try began.
    pub(super) began: Duration,
    /// When the last try ended. `None` during the first one.
    pub(super) tried_by: Option<Duration>,
    /// When the next try begins, if the last one has ended.
    pub(super) retry_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Doorbells,
    Limited,
    Due,
}

impl Claiming {
    pub(super) fn new(now: Duration, cursor: Destination) -> Claiming {
        Claiming {
            in_progress: None,
            last: Turn::Due,
            poll_at: now,
            // Random, so that dispatchers don't compete for the same rows.
            cursor: Some(cursor),
            has_backlog: false,
            circle: Circle::default(),
            empty_polls: 0,
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
        let relay = (!is_off(Protection::Relay)).then_some(self.claiming.poll_at);
        let next = [relay, gathered].into_iter().flatten().min()?;
        Some(next.max(self.claim_paused_until()))
    }

    fn claim_paused_until(&self) -> Duration {
        self.claiming.paused_until.max(self.troubles.paused_until())
    }

    /// Returns the number of free slots.
    pub(super) fn room(&self) -> usize {
        let taken = self.attempts.len() + self.recording.len();
        let free = self.limits.max_in_flight.saturating_sub(taken);
        free.min(self.troubles.room()).min(self.claiming.limit)
    }

    pub(super) fn byte_room(&self) -> ByteRoom {
        let free = self.limits.max_in_flight_bytes.saturating_sub(self.bytes_in_flight);
        let per_destination = self.limits.max_in_flight_bytes / 8;
        ByteRoom { free, is_idle: self.attempts.is_empty(), per_destination }
    }

    pub(super) fn bytes_by_destination(&self) -> HashMap<Destination, u64> {
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
        let is_time = self.claiming.poll_at <= now.monotonic && !self.is_reserved();
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
}

//! Fairness: how the relay shares its free slots among the destinations with due deliveries.

use std::collections::HashMap;

use contracts::{DeliveryId, Destination, Timestamp};

use crate::protection::{Protection, is_off};

/// What one poll of the relay may claim. The store consults it between its statements.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayPlan {
    /// The number of free slots.
    pub room: usize,
    /// The payload bytes that may be claimed.
    pub bytes: ByteRoom,
    /// Bytes in flight by destination, without those that have none.
    pub bytes_in_flight: HashMap<Destination, u64>,
    /// How many attempts a destination that is not in `rooms` may have.
    pub ordinary_room: usize,
    /// How many attempts each of the other destinations may have now.
    pub rooms: HashMap<Destination, usize>,
    /// The walk over the destinations begins after this one.
    pub cursor: Option<Destination>,
    /// Whether more is due than a poll by time reads, so that this poll walks the destinations at once.
    pub has_backlog: bool,
    /// Deliveries that the database recently refused to claim, skipped for a while.
    pub stepped_over: Vec<DeliveryId>,
    /// Destinations known to have due deliveries, with room again. If not empty, only these are polled.
    pub targets: Vec<Destination>,
}

/// The payload bytes that may be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteRoom {
    /// The rest of the byte budget.
    pub free: u64,
    /// Whether nothing is in flight. If so, one payload of any size is sent, alone.
    pub is_idle: bool,
    /// The most bytes of one destination, except for a single larger payload.
    pub per_destination: u64,
}

/// Whether a payload may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits,
    /// Its destination has reached its share of bytes in flight.
    DestinationFull,
    /// It exceeds the rest of the budget.
    TooLarge,
}

impl ByteRoom {
    /// Takes a payload's bytes if they fit, given the bytes `in_flight` to its destination.
    pub(crate) fn judge(&mut self, bytes: u64, in_flight: &mut u64) -> Fit {
        if !is_off(Protection::ByteBudget) {
            if *in_flight > 0 && in_flight.saturating_add(bytes) > self.per_destination {
                return Fit::DestinationFull;
            }
            if bytes > self.free && !self.is_idle {
                return Fit::TooLarge;
            }
        }
        (self.free, self.is_idle) = (self.free.saturating_sub(bytes), false);
        *in_flight = in_flight.saturating_add(bytes);
        Fit::Fits
    }
}

/// A destination with due deliveries, as a poll found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DueDestination {
    pub destination: Destination,
    pub hold: HoldState,
}

/// Whether attempts may be sent to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    /// Attempts may be sent.
    Open,
    /// Attempts wait: the destination is held, or its probe is in flight.
    Held,
    /// The hold has ended, and a single attempt may be sent as a probe.
    HalfOpen,
}

impl HoldState {
    /// Returns the state of a destination. `row` is its row, if any: the end of its hold and the end of its
    /// probe's lease.
    pub fn of(row: Option<(Timestamp, Option<Timestamp>)>, now: Timestamp) -> HoldState {
        match row {
            _ if is_off(Protection::Hold) => HoldState::Open,
            None => HoldState::Open,
            Some((held_until, _)) if held_until > now => HoldState::Held,
            Some(_) if is_off(Protection::Probe) => HoldState::Open,
            Some((_, Some(probing_until))) if probing_until > now || is_off(Protection::ProbeLease) => {
                HoldState::Held
            }
            Some(_) => HoldState::HalfOpen,
        }
    }
}

/// A destination's share of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Share {
    pub destination: Destination,
    pub attempts: usize,
    pub is_probe: bool,
}

/// The shares of a poll.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// In round-robin order; each of at least one attempt.
    pub shares: Vec<Share>,
    /// Destinations that could have had an attempt but got none for lack of room.
    pub cut_off: Vec<Destination>,
}

/// A due delivery whose row is locked by this transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Candidate {
    pub delivery_id: DeliveryId,
    pub destination: Destination,
    /// Its payload's length.
    pub bytes: u64,
    /// Since when it is due.
    pub due_at: Timestamp,
}

/// The candidates chosen by [`RelayPlan::select`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The candidates to claim.
    pub chosen: Vec<Candidate>,
    /// Destinations that have reached their share of bytes in flight.
    pub limited: Vec<Destination>,
    /// The first candidate that did not fit into the budget. The next poll begins with it.
    pub too_large: Option<Candidate>,
}

/// How far a poll got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether more was due than a poll by time reads. False after a walk that reached the last destination.
    pub has_backlog: bool,
    /// The last destination that a walk visited. `None`: it reached the last destination, or was no walk.
    pub walked_to: Option<Destination>,
}

/// The result of one poll of the relay, as state for the next one. Built by [`RelayPlan::poll_result`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollResult {
    /// The next walk begins after this destination. `None`: at the first one.
    pub cursor: Option<Destination>,
    /// Whether more was due than a poll by time reads.
    pub has_backlog: bool,
    /// Whether more could be claimed, given free slots.
    pub has_more: bool,
    /// Destinations that have more attempts due than they may have now.
    pub limited: Vec<Destination>,
    /// The plan's targets that may have more attempts due than there was room for.
    pub left: Vec<Destination>,
    /// The size of a payload that did not fit into the budget.
    pub too_large: Option<u64>,
}

impl RelayPlan {
    /// Returns the most destinations a walk visits: enough to be worth a transaction, and bounded by the
    /// room, because each destination costs the same whether anything is due or not.
    pub fn steps(&self) -> usize {
        (2 * self.room).clamp(64, 256)
    }

    /// Shares the room among the due destinations: each in turn gets one more attempt until the room is used
    /// up or every destination has reached its limit. `due` is in ascending order.
    pub fn share(&self, due: &[DueDestination]) -> Shares {
        let (behind, ahead): (Vec<&DueDestination>, Vec<&DueDestination>) =
            due.iter().partition(|due| self.cursor.is_some_and(|cursor| due.destination <= cursor));
        let allowed = ahead.into_iter().chain(behind).filter_map(|due| {
            let room = self.room_of(due.destination);
            let (room, is_probe) = match due.hold {
                HoldState::Open => (room, false),
                HoldState::Held => (0, false),
                HoldState::HalfOpen => (room.min(1), true),
            };
            (room > 0).then_some((Share { destination: due.destination, attempts: 0, is_probe }, room))
        });
        let mut allowed: Vec<(Share, usize)> = allowed.collect();
        let mut left = self.room;
        let mut is_full = false;
        while left > 0 && !is_full {
            is_full = true;
            for (share, _) in allowed.iter_mut().filter(|(share, room)| share.attempts < *room) {
                if left == 0 {
                    break;
                }
                (share.attempts, left, is_full) = (share.attempts + 1, left - 1, false);
            }
        }
        let allowed = allowed.into_iter().map(|(share, _)| share);
        let (cut_off, shares): (Vec<Share>, Vec<Share>) = allowed.partition(|share| share.attempts == 0);
        Shares { shares, cut_off: cut_off.iter().map(|share| share.destination).collect() }
    }

    /// Chooses candidates within the byte budget: the first of each destination, then the second of each, and
    /// so on. Stops at the first one that does not fit, so that small payloads don't overtake a large one
    /// forever. `candidates` are in the shares' order, each destination's oldest first.
    pub fn select(&self, candidates: &[Candidate]) -> Selection {
        let mut taken: HashMap<Destination, usize> = HashMap::new();
        let mut ranked: Vec<(usize, Candidate)> = candidates
            .iter()
            .map(|candidate| {
                let rank = taken.entry(candidate.destination).or_default();
                *rank += 1;
                (*rank, *candidate)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank); // stable: keeps the shares' order within a rank
        let mut selection = Selection::default();
        let mut bytes = self.bytes.clone();
        let mut in_flight = self.bytes_in_flight.clone();
        for (_, candidate) in ranked {
            if selection.limited.contains(&candidate.destination) {
                continue;
            }
            match bytes.judge(candidate.bytes, in_flight.entry(candidate.destination).or_default()) {
                Fit::Fits => selection.chosen.push(candidate),
                Fit::DestinationFull => selection.limited.push(candidate.destination),
                Fit::TooLarge => {
                    selection.too_large = Some(candidate);
                    break;
                }
            }
        }
        selection
    }

    /// Returns the state for the next poll after one that found `due`, shared the room and made a selection.
    pub fn poll_result(
        &self,
        due: &[DueDestination],
        shares: &Shares,
        selection: &Selection,
        seen: Seen,
    ) -> PollResult {
        let mut found: HashMap<Destination, usize> = HashMap::new();
        for candidate in selection.chosen.iter().chain(&selection.too_large) {
            *found.entry(candidate.destination).or_default() += 1;
        }
        let is_used_up = |share: &&Share| found.get(&share.destination) == Some(&share.attempts);
        let used_up: HashMap<Destination, &Share> =
            shares.shares.iter().filter(is_used_up).map(|share| (share.destination, share)).collect();
        let open = due.iter().filter(|due| due.hold == HoldState::Open).map(|due| due.destination);
        let is_limited =
            |destination: &Destination| match (self.room_of(*destination), used_up.get(destination)) {
                (0, _) => true,
                (room, Some(share)) => share.attempts == room,
                (_, None) => false,
            };
        let limited = open.filter(|of| is_limited(of) || selection.limited.contains(of)).collect();
        let has_more = |share: &&&Share| !share.is_probe && share.attempts < self.room_of(share.destination);
        let cursor = match (selection.too_large, shares.shares.last()) {
            // The next walk begins with that destination again.
            (Some(candidate), _) => Some(Destination::from(candidate.destination.as_i64().wrapping_sub(1))),
            (None, Some(last)) if !shares.cut_off.is_empty() => Some(last.destination),
            (None, _) => seen.walked_to,
        };
        let left = match selection.too_large {
            Some(_) => self.targets.clone(),
            None => {
                let could_have_more = used_up.values().filter(has_more).map(|share| share.destination);
                let left: Vec<Destination> = could_have_more.chain(shares.cut_off.iter().copied()).collect();
                self.targets.iter().filter(|target| left.contains(target)).copied().collect()
            }
        };
        PollResult {
            cursor,
            has_backlog: seen.has_backlog,
            has_more: !shares.cut_off.is_empty() || used_up.values().any(|share| has_more(&share)),
            limited,
            left,
            too_large: selection.too_large.map(|candidate| candidate.bytes),
        }
    }

    /// Returns how many attempts a destination may have now.
    pub(crate) fn room_of(&self, destination: Destination) -> usize {
        self.rooms.get(&destination).copied().unwrap_or(self.ordinary_room)
    }
}

#[cfg(test)]
mod tests;

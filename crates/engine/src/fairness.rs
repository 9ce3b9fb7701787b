//! Whose turn it is: how the relay shares its free slots among the destinations that have something due.

use std::collections::HashMap;

use contracts::{DeliveryId, Destination, Timestamp};

use crate::protection::{Protection, is_off};

/// What one look of the relay may claim. The store asks it between its statements.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayPlan {
    /// Free slots.
    pub room: usize,
    /// How many bytes of payload may be claimed.
    pub bytes: ByteRoom,
    /// How many attempts a destination may have that is not in `rooms`.
    pub ordinary_room: usize,
    /// How many attempts each other destination may have now.
    pub rooms: HashMap<Destination, usize>,
    /// Where in the circle of destinations the look begins: after this one.
    pub cursor: Option<Destination>,
    /// Whether more is due than a look by time sees, so that it walks the circle at once.
    pub has_backlog: bool,
    /// Deliveries that could not be claimed lately: each is tried again by itself.
    pub stepped_over: Vec<DeliveryId>,
}

/// How many bytes of payload may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRoom {
    /// What is left of the budget.
    pub free: u64,
    /// Whether nothing is in flight: then one payload goes however large it is, alone.
    pub is_idle: bool,
}

/// A destination with something due, as a look sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DueDestination {
    pub destination: Destination,
    pub hold: HoldState,
}

/// Whether attempts may go to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    /// They may.
    Open,
    /// They wait: it is held, or its probe is on the way.
    Held,
    /// Its hold has ended, and one attempt goes first.
    HalfOpen,
}

impl HoldState {
    /// The state of a destination by its row, if it has one: held until when, and until when its probe is leased.
    pub fn of(row: Option<(Timestamp, Option<Timestamp>)>, now: Timestamp) -> HoldState {
        match row {
            _ if is_off(Protection::Hold) => HoldState::Open,
            None => HoldState::Open,
            Some((held_until, _)) if held_until > now => HoldState::Held,
            Some(_) if is_off(Protection::Probe) => HoldState::Open,
            Some((_, Some(probing_until))) if probing_until > now => HoldState::Held,
            Some(_) => HoldState::HalfOpen,
        }
    }
}

/// A destination's share of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Share {
    pub destination: Destination,
    pub attempts: usize,
    pub is_probe: bool,
}

/// The shares of a look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// In the circle's order; each of at least one attempt.
    pub shares: Vec<Share>,
    /// Whether there was no room for some destination that could have had an attempt.
    pub is_cut_short: bool,
}

/// A due delivery whose row is locked by this transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Candidate {
    pub delivery_id: DeliveryId,
    pub destination: Destination,
    /// Its payload's length.
    pub bytes: u64,
}

/// Which candidates are claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those that are.
    pub chosen: Vec<Candidate>,
    /// The first that did not fit into the budget. It is the next one's turn.
    pub too_large: Option<Candidate>,
}

/// How a look of the relay went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Where in the circle the next one begins. `None`: at its beginning.
    pub cursor: Option<Destination>,
    /// Whether more was due than a look by time sees.
    pub has_backlog: bool,
    /// Whether there is more that could be claimed, given room.
    pub has_more: bool,
    /// The size of a payload that did not fit into the budget.
    pub too_large: Option<u64>,
}

impl RelayPlan {
    /// Shares the room among the destinations that are due: each in turn gets one attempt more, until the room is
    /// used up or each has what it may have. `due` is in ascending order.
    pub fn share(&self, due: &[DueDestination]) -> Shares {
        let (behind, ahead): (Vec<&DueDestination>, Vec<&DueDestination>) =
            due.iter().partition(|due| self.cursor.is_some_and(|cursor| due.destination <= cursor));
        let allowed = ahead.into_iter().chain(behind).filter_map(|due| {
            let room = self.rooms.get(&due.destination).copied().unwrap_or(self.ordinary_room);
            let (room, is_probe) = match due.hold {
                HoldState::Open => (room, false),
                HoldState::Held => (0, false),
                HoldState::HalfOpen => (1, true),
            };
            (room > 0).then_some((Share { destination: due.destination, attempts: 0, is_probe }, room))
        });
        let mut allowed: Vec<(Share, usize)> = allowed.collect();
        let mut left = self.room;
        let mut is_full = false;
        while left > 0 && !is_full {
            is_full = true;
            for (share, room) in allowed.iter_mut().filter(|(share, room)| share.attempts < *room) {
                if left == 0 {
                    break;
                }
                (share.attempts, left, is_full) = (share.attempts + 1, left - 1, false);
            }
        }
        let is_cut_short = allowed.iter().any(|(share, _)| share.attempts == 0);
        let shares = allowed.into_iter().map(|(share, _)| share).filter(|share| share.attempts > 0);
        Shares { shares: shares.collect(), is_cut_short }
    }

    /// Chooses by size: each destination's first, then each one's second, until the budget is used up. Stops at the
    /// first that does not fit, so that small ones don't overtake a large one for ever. `candidates` are in the shares'
    /// order, each destination's oldest first.
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
        ranked.sort_by_key(|(rank, _)| *rank); // stable: the shares' order within a rank
        let mut selection = Selection::default();
        let mut free = self.bytes.free;
        for (_, candidate) in ranked {
            let goes_alone = self.bytes.is_idle && selection.chosen.is_empty();
            if candidate.bytes > free && !goes_alone && !is_off(Protection::ByteBudget) {
                selection.too_large = Some(candidate);
                break;
            }
            free = free.saturating_sub(candidate.bytes);
            selection.chosen.push(candidate);
        }
        selection
    }

    /// Where the next look begins. `walked_to` is the last destination that a walk saw, `None` if the circle has ended.
    pub fn next_cursor(
        &self,
        shares: &Shares,
        selection: &Selection,
        walked_to: Option<Destination>,
    ) -> Option<Destination> {
        if let Some(candidate) = selection.too_large {
            return Some(Destination::from(candidate.destination.as_i64().wrapping_sub(1)));
        }
        match shares.shares.last() {
            Some(last) if shares.is_cut_short => Some(last.destination),
            _ => walked_to,
        }
    }
}

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
    /// Bytes in flight of each destination that has any.
    pub bytes_in_flight: HashMap<Destination, u64>,
    /// How many attempts a destination may have that is not in `rooms`.
    pub ordinary_room: usize,
    /// How many attempts each other destination may have now.
    pub rooms: HashMap<Destination, usize>,
    /// Where in the circle of destinations the look begins: after this one.
    pub cursor: Option<Destination>,
    /// Whether more is due than a look by time sees, so that it walks the circle at once.
    pub has_backlog: bool,
    /// Deliveries that the database refused to claim lately: they are left alone for a while.
    pub stepped_over: Vec<DeliveryId>,
    /// Destinations known to have something due, which have room again. When there are any, the look is at them alone.
    pub targets: Vec<Destination>,
}

/// How many bytes of payload may be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteRoom {
    /// What is left of the budget.
    pub free: u64,
    /// Whether nothing is in flight: then one payload goes however large it is, alone.
    pub is_idle: bool,
    /// The most of one destination, but for a single larger payload.
    pub per_destination: u64,
}

/// Whether a payload may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Fits,
    /// Its destination has as much in flight as it may.
    DestinationFull,
    /// It is larger than what is left of the budget.
    TooLarge,
}

impl ByteRoom {
    /// Takes a payload's bytes if it fits beside those `in_flight` to its destination.
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
            Some((_, Some(probing_until))) if probing_until > now || is_off(Protection::ProbeLease) => {
                HoldState::Held
            }
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
    /// Destinations that could have had an attempt, and for which there was no room.
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
}

/// Which candidates are claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those that are.
    pub chosen: Vec<Candidate>,
    /// Destinations that have as many bytes in flight as they may.
    pub limited: Vec<Destination>,
    /// The first that did not fit into the budget. It is the next one's turn.
    pub too_large: Option<Candidate>,
}

/// How far a look saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether more was due than a look by time sees. False after a walk that came to the circle's end.
    pub has_backlog: bool,
    /// The last destination that a walk saw. `None`: it has come to the circle's end, or it was no walk.
    pub walked_to: Option<Destination>,
}

/// How a look of the relay went. [`RelayPlan::look`] makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Where in the circle the next one begins. `None`: at its beginning.
    pub cursor: Option<Destination>,
    /// Whether more was due than a look by time sees.
    pub has_backlog: bool,
    /// Whether there is more that could be claimed, given free slots.
    pub has_more: bool,
    /// Destinations that have more due than they may have now.
    pub limited: Vec<Destination>,
    /// Of the plan's targets, those that may have more than there was room for.
    pub left: Vec<Destination>,
    /// The size of a payload that did not fit into the budget.
    pub too_large: Option<u64>,
}

impl RelayPlan {
    /// How many destinations a walk looks at, at most: so many that it is worth its transaction, and no more than there is
    /// room for, as each costs the same whether something is due there or not.
    pub fn steps(&self) -> usize {
        (2 * self.room).clamp(64, 256)
    }

    /// Shares the room among the destinations that are due: each in turn gets one attempt more, until the room is
    /// used up or each has what it may have. `due` is in ascending order.
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

    /// What a look that saw `due` destinations, shared the room and made a selection means for the next one.
    pub fn look(&self, due: &[DueDestination], shares: &Shares, selection: &Selection, seen: Seen) -> Look {
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
            // It is that destination's turn again.
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
        Look {
            cursor,
            has_backlog: seen.has_backlog,
            has_more: !shares.cut_off.is_empty() || used_up.values().any(|share| has_more(&share)),
            limited,
            left,
            too_large: selection.too_large.map(|candidate| candidate.bytes),
        }
    }

    /// How many attempts a destination may have now.
    pub(crate) fn room_of(&self, destination: Destination) -> usize {
        self.rooms.get(&destination).copied().unwrap_or(self.ordinary_room)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn plan(room: usize) -> RelayPlan {
        RelayPlan {
            room,
            bytes: ByteRoom { free: 1_000, is_idle: false, per_destination: 1_000 },
            bytes_in_flight: HashMap::new(),
            ordinary_room: 4,
            rooms: HashMap::new(),
            cursor: None,
            has_backlog: false,
            stepped_over: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn destination(number: i64) -> Destination {
        Destination::from(number)
    }

    fn due(numbers: std::ops::Range<i64>) -> Vec<DueDestination> {
        numbers.map(|n| DueDestination { destination: destination(n), hold: HoldState::Open }).collect()
    }

    fn attempts(shares: &Shares) -> Vec<(i64, usize)> {
        shares.shares.iter().map(|share| (share.destination.as_i64(), share.attempts)).collect()
    }

    fn candidate(id: u128, of: i64, bytes: u64) -> Candidate {
        Candidate { delivery_id: DeliveryId(Uuid::from_u128(id)), destination: destination(of), bytes }
    }

    fn chosen(selection: &Selection) -> Vec<u128> {
        selection.chosen.iter().map(|candidate| candidate.delivery_id.0.as_u128()).collect()
    }

    #[test]
    fn room_is_shared_equally_and_no_destination_gets_more_than_it_may_have() {
        let mut plan = plan(10);
        plan.rooms.insert(destination(1), 1);
        let shares = plan.share(&due(0..3));
        assert_eq!(attempts(&shares), [(0, 4), (1, 1), (2, 4)]);
        assert!(shares.cut_off.is_empty());
        plan.room = 5;
        assert_eq!(attempts(&plan.share(&due(0..3))), [(0, 2), (1, 1), (2, 2)]);
    }

    #[test]
    fn with_more_destinations_than_room_the_next_look_goes_on_where_this_one_ended() {
        let mut plan = plan(3);
        let mut served = Vec::new();
        for _ in 0..3 {
            let due = due(0..8);
            let shares = plan.share(&due);
            served.extend(attempts(&shares).into_iter().map(|(destination, _)| destination));
            plan.cursor = plan.look(&due, &shares, &Selection::default(), Seen::default()).cursor;
        }
        assert_eq!(served, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
    }

    #[test]
    fn full_and_held_destinations_get_nothing_and_a_half_open_one_its_probe() {
        let mut plan = plan(10);
        plan.rooms.insert(destination(0), 0);
        let mut due = due(0..3);
        (due[1].hold, due[2].hold) = (HoldState::Held, HoldState::HalfOpen);
        let shares = plan.share(&due);
        let probe = Share { destination: destination(2), attempts: 1, is_probe: true };
        assert_eq!(
            (shares.shares.as_slice(), shares.cut_off.as_slice()),
            ([probe].as_slice(), [].as_slice())
        );
        let look = plan.look(&due, &shares, &Selection::default(), Seen::default());
        assert_eq!((look.limited, look.has_more), (vec![destination(0)], false));
        // Attempts from before the hold count, too.
        plan.rooms.insert(destination(2), 0);
        assert!(plan.share(&due).shares.is_empty());
    }

    #[test]
    fn a_destination_that_used_up_what_it_may_have_is_limited_and_one_that_could_have_more_says_so() {
        let plan = plan(10);
        let due = due(0..2);
        let shares = plan.share(&due);
        let all = |count| (0..count).map(|id| candidate(id, 0, 1)).collect::<Vec<_>>();
        let look =
            |candidates: &[Candidate]| plan.look(&due, &shares, &plan.select(candidates), Seen::default());
        assert_eq!(look(&all(4)).limited, [destination(0)]);
        assert!(look(&all(3)).limited.is_empty());
        let narrow = RelayPlan { room: 2, ..plan.clone() };
        let shares = narrow.share(&due);
        let one = narrow.select(&[candidate(0, 0, 1)]);
        assert!(narrow.look(&due, &shares, &one, Seen::default()).has_more);
    }

    #[test]
    fn of_its_targets_a_look_leaves_only_those_for_which_there_was_no_room() {
        let targets: Vec<Destination> = (0..3).map(destination).collect();
        let plan = RelayPlan { targets, ..plan(2) };
        let due = due(0..3);
        let shares = plan.share(&due);
        assert_eq!(shares.cut_off, [destination(2)]);
        // The first has no more than its share, the second has nothing due.
        let look =
            |candidates: &[Candidate]| plan.look(&due, &shares, &plan.select(candidates), Seen::default());
        assert_eq!(look(&[]).left, [destination(2)]);
        assert_eq!(look(&[candidate(0, 0, 1)]).left, [destination(0), destination(2)]);
    }

    #[test]
    fn bytes_are_shared_like_attempts_and_the_first_that_does_not_fit_is_next() {
        let plan = plan(10);
        let candidates =
            [candidate(1, 0, 400), candidate(2, 0, 400), candidate(3, 1, 400), candidate(4, 1, 1)];
        let selection = plan.select(&candidates);
        assert_eq!(chosen(&selection), [1, 3]);
        assert_eq!(selection.too_large, Some(candidates[1]));
        let due = due(0..2);
        let look = plan.look(&due, &plan.share(&due), &selection, Seen::default());
        assert_eq!((look.cursor, look.too_large), (Some(destination(-1)), Some(400)));
    }

    #[test]
    fn one_destination_has_its_share_of_the_bytes_but_for_a_single_larger_payload() {
        let mut plan = plan(10);
        plan.bytes.per_destination = 500;
        let candidates =
            [candidate(1, 0, 300), candidate(2, 0, 300), candidate(3, 0, 1), candidate(4, 1, 600)];
        let selection = plan.select(&candidates);
        assert_eq!((chosen(&selection), selection.too_large), (vec![1, 4], None));
        let due = due(0..2);
        assert_eq!(plan.look(&due, &plan.share(&due), &selection, Seen::default()).limited, [destination(0)]);
    }

    #[test]
    fn a_payload_beyond_the_budget_goes_alone() {
        let mut plan = plan(10);
        let candidates = [candidate(1, 0, 5_000), candidate(2, 1, 1)];
        assert!(chosen(&plan.select(&candidates)).is_empty());
        plan.bytes.is_idle = true;
        assert_eq!(chosen(&plan.select(&candidates)), [1]);
    }

    #[test]
    fn when_a_hold_ends_one_attempt_goes_first() {
        let now = Timestamp::from_micros(1_000_000);
        let second = std::time::Duration::from_secs(1);
        let of = |held_until, probing_until| HoldState::of(Some((held_until, probing_until)), now);
        assert_eq!(HoldState::of(None, now), HoldState::Open);
        assert_eq!(of(now + second, None), HoldState::Held);
        assert_eq!(of(now, None), HoldState::HalfOpen);
        assert_eq!(of(now, Some(now + second)), HoldState::Held);
        assert_eq!(of(now, Some(now)), HoldState::HalfOpen);
    }
}

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

/// The result of one poll of the relay, as state for the next one. Built by [`RelayPlan::look`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
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
        Look {
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
    fn room_is_shared_equally_and_within_each_destinations_limit() {
        let mut plan = plan(10);
        plan.rooms.insert(destination(1), 1);
        let shares = plan.share(&due(0..3));
        assert_eq!(attempts(&shares), [(0, 4), (1, 1), (2, 4)]);
        assert!(shares.cut_off.is_empty());
        plan.room = 5;
        assert_eq!(attempts(&plan.share(&due(0..3))), [(0, 2), (1, 1), (2, 2)]);
    }

    #[test]
    fn with_more_destinations_than_room_the_next_poll_continues_where_this_one_ended() {
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
    fn full_and_held_destinations_get_no_attempts_and_a_half_open_one_gets_its_probe() {
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
        // Attempts from before the hold count as well.
        plan.rooms.insert(destination(2), 0);
        assert!(plan.share(&due).shares.is_empty());
    }

    #[test]
    fn a_destination_at_its_limit_is_limited_and_one_cut_short_by_room_has_more() {
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
    fn a_poll_of_targets_leaves_only_those_without_enough_room() {
        let targets: Vec<Destination> = (0..3).map(destination).collect();
        let plan = RelayPlan { targets, ..plan(2) };
        let due = due(0..3);
        let shares = plan.share(&due);
        assert_eq!(shares.cut_off, [destination(2)]);
        // Destination 0 uses up its share of one only in the second case; destination 1 has nothing due.
        let look =
            |candidates: &[Candidate]| plan.look(&due, &shares, &plan.select(candidates), Seen::default());
        assert_eq!(look(&[]).left, [destination(2)]);
        assert_eq!(look(&[candidate(0, 0, 1)]).left, [destination(0), destination(2)]);
    }

    #[test]
    fn bytes_are_shared_like_attempts_and_the_first_payload_that_does_not_fit_is_next() {
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
    fn a_destination_stays_within_its_share_of_bytes_except_for_a_single_larger_payload() {
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
    fn a_payload_beyond_the_budget_is_chosen_alone() {
        let mut plan = plan(10);
        let candidates = [candidate(1, 0, 5_000), candidate(2, 1, 1)];
        assert!(chosen(&plan.select(&candidates)).is_empty());
        plan.bytes.is_idle = true;
        assert_eq!(chosen(&plan.select(&candidates)), [1]);
    }

    #[test]
    fn a_destination_is_half_open_after_its_hold_until_its_probe_is_leased() {
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

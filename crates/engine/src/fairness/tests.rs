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
    Candidate {
        delivery_id: DeliveryId(Uuid::from_u128(id)),
        destination: destination(of),
        bytes,
        due_at: Timestamp::from_micros(0),
    }
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
        plan.cursor = plan.poll_result(&due, &shares, &Selection::default(), Seen::default()).cursor;
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
    assert_eq!((shares.shares.as_slice(), shares.cut_off.as_slice()), ([probe].as_slice(), [].as_slice()));
    let poll = plan.poll_result(&due, &shares, &Selection::default(), Seen::default());
    assert_eq!((poll.limited, poll.has_more), (vec![destination(0)], false));
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
    let poll =
        |candidates: &[Candidate]| plan.poll_result(&due, &shares, &plan.select(candidates), Seen::default());
    assert_eq!(poll(&all(4)).limited, [destination(0)]);
    assert!(poll(&all(3)).limited.is_empty());
    let narrow = RelayPlan { room: 2, ..plan.clone() };
    let shares = narrow.share(&due);
    let one = narrow.select(&[candidate(0, 0, 1)]);
    assert!(narrow.poll_result(&due, &shares, &one, Seen::default()).has_more);
}

#[test]
fn a_poll_of_targets_leaves_only_those_without_enough_room() {
    let targets: Vec<Destination> = (0..3).map(destination).collect();
    let plan = RelayPlan { targets, ..plan(2) };
    let due = due(0..3);
    let shares = plan.share(&due);
    assert_eq!(shares.cut_off, [destination(2)]);
    // Destination 0 uses up its share of one only in the second case; destination 1 has nothing due.
    let poll =
        |candidates: &[Candidate]| plan.poll_result(&due, &shares, &plan.select(candidates), Seen::default());
    assert_eq!(poll(&[]).left, [destination(2)]);
    assert_eq!(poll(&[candidate(0, 0, 1)]).left, [destination(0), destination(2)]);
}

#[test]
fn bytes_are_shared_like_attempts_and_the_first_payload_that_does_not_fit_is_next() {
    let plan = plan(10);
    let candidates = [candidate(1, 0, 400), candidate(2, 0, 400), candidate(3, 1, 400), candidate(4, 1, 1)];
    let selection = plan.select(&candidates);
    assert_eq!(chosen(&selection), [1, 3]);
    assert_eq!(selection.too_large, Some(candidates[1]));
    let due = due(0..2);
    let poll = plan.poll_result(&due, &plan.share(&due), &selection, Seen::default());
    assert_eq!((poll.cursor, poll.too_large), (Some(destination(-1)), Some(400)));
}

#[test]
fn a_destination_stays_within_its_share_of_bytes_except_for_a_single_larger_payload() {
    let mut plan = plan(10);
    plan.bytes.per_destination = 500;
    let candidates = [candidate(1, 0, 300), candidate(2, 0, 300), candidate(3, 0, 1), candidate(4, 1, 600)];
    let selection = plan.select(&candidates);
    assert_eq!((chosen(&selection), selection.too_large), (vec![1, 4], None));
    let due = due(0..2);
    assert_eq!(
        plan.poll_result(&due, &plan.share(&due), &selection, Seen::default()).limited,
        [destination(0)]
    );
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

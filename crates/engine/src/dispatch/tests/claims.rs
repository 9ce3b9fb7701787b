//! Claims: doorbells, limits of destinations, bytes, unknown and refused ones.

use super::*;

#[test]
fn a_lone_doorbell_is_claimed_at_once_and_acknowledged_after_its_claim_has_committed() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let (id, jobs) = bench.jobs();
    assert_eq!(jobs.len(), 1);
    assert!(bench.acknowledged().is_empty());
    let claimed = vec![bench.claimed(id, &jobs[0])];
    bench.tell(Event::Claimed { claimed, is_recovered: false, poll: None });
    assert_eq!(bench.acknowledged(), [1]);
    assert_eq!(bench.sent(), [bench.now.monotonic + LEASE - 10 * SECOND]);
}

#[test]
fn doorbells_that_arrive_during_a_claim_form_the_next_claim() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    bench.ring(1, 1, 10);
    bench.ring(2, 1, 10);
    bench.commit();
    assert_eq!(bench.jobs().1.len(), 2);
}

#[test]
fn a_doorbell_of_a_delivery_that_the_relay_has_long_been_looking_for_is_dropped() {
    let mut bench = Bench::new(limits());
    let accepted_at = bench.now.clock;
    let doorbell = |token: u64| Doorbell {
        token,
        job: Job {
            delivery_id: DeliveryId::with_random(accepted_at, token.into()),
            attempt: 1,
            destination: Destination::from(1),
            payload_size: Some(10),
            org_id: OrgId(Uuid::nil()),
            request_id: "r".to_owned(),
            traceparent: None,
        },
    };
    bench.now.clock = accepted_at + 5 * SECOND;
    bench.tell(Event::Doorbells(vec![doorbell(1)]));
    let (_, jobs) = bench.jobs();
    assert_eq!(jobs.len(), 1, "late, but not yet too late");
    bench.actions.clear();
    bench.now.clock = accepted_at + 6 * SECOND;
    bench.tell(Event::Doorbells(vec![doorbell(2), doorbell(3)]));
    assert_eq!(bench.actions, [Action::Acknowledge(vec![2, 3])]);
}

#[test]
fn doorbells_of_a_full_destination_are_dropped_and_its_deliveries_polled_once_it_has_room() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 6, 10);
    let held = bench.commit();
    assert_eq!(held.len(), 4);
    assert_eq!(bench.acknowledged().len(), 6);
    bench.ring(2, 1, 10);
    assert_eq!(bench.commit().len(), 1, "another destination's is served");
    assert_eq!(bench.claim(), None);
    held.iter().for_each(|held| bench.end(held, answered(200)));
    bench.wait(Duration::from_millis(5));
    let plan = bench.plan();
    assert_eq!(plan.targets, [Destination::from(1)]);
    assert_eq!(plan.rooms.get(&Destination::from(1)), None, "it may have as many as any other again");
}

#[test]
fn freed_slots_of_a_full_destination_gather_into_one_claim() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 6, 10);
    let held = bench.commit();
    bench.end(&held[0], answered(200));
    assert_eq!(bench.claim(), None);
    bench.end(&held[1], answered(200));
    bench.wait(Duration::from_millis(5));
    let plan = bench.plan();
    assert_eq!(plan.rooms.get(&Destination::from(1)), Some(&2));
}

#[test]
fn a_hanging_destination_is_soon_limited_to_one_slot() {
    let mut bench = Bench::new(limits());
    for expected in [4, 2, 1, 1] {
        bench.ring(1, 8, 10);
        let held = bench.commit();
        assert_eq!(held.len(), expected);
        bench.wait(10 * SECOND);
        held.iter().for_each(|held| bench.end(held, Outcome::failed(FailureReason::Timeout, "hangs")));
        while let Some(Batch { id, results }) = bench.record() {
            bench.tell(Event::Recorded { id, effects: vec![Effect::Recorded; results.len()] });
        }
        while bench.claim().is_some() {
            bench.poll(PollResult::default());
        }
        bench.tell(Event::LeasesRecovered { count: 0 });
    }
}

#[test]
fn a_retry_after_drops_the_destinations_doorbells_until_the_hold_ends() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 2, 10);
    let held = bench.commit();
    bench.end(&held[0], retry_after(30));
    let result = bench.record().unwrap().results.remove(0);
    assert_eq!(result.hold, HoldChange::HoldUntil(bench.now.clock + 30 * SECOND));
    bench.acknowledged();
    bench.ring(1, 1, 10);
    assert_eq!((bench.claim(), bench.acknowledged().len()), (None, 1));
    bench.ring(2, 1, 10);
    bench.commit();
    bench.wait(31 * SECOND);
    assert_eq!(bench.plan().rooms.get(&Destination::from(1)), Some(&1), "halved, less what is in flight");
}

#[test]
fn payload_bytes_in_flight_stay_within_the_budget_and_each_destinations_share() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 4, 60);
    assert_eq!(bench.commit().len(), 2, "an eighth of 1,000 bytes");
    bench.ring(2, 1, 950);
    assert_eq!(bench.claim(), None, "it does not fit beside them");
    bench.wait(Duration::from_millis(5));
    assert_eq!(bench.plan().bytes.free, 880);
}

#[test]
fn a_payload_beyond_the_budget_is_sent_alone() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 5_000);
    bench.ring(2, 1, 10);
    assert_eq!(bench.commit().len(), 1);
    assert_eq!(bench.dispatch.bytes_in_flight(), 5_000);
    assert_eq!(bench.claim(), None);
}

#[test]
fn a_large_payload_that_waits_for_bytes_is_not_overtaken() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 100);
    let held = bench.commit();
    bench.wait(SECOND);
    bench.plan();
    bench.poll(PollResult { too_large: Some(950), ..PollResult::default() });
    bench.ring(2, 1, 10);
    assert_eq!(bench.claim(), None);
    bench.end(&held[0], answered(200));
    assert!(bench.claim().is_some());
}

#[test]
fn a_claim_of_unknown_outcome_is_retried_under_its_id_while_doorbells_are_paused() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let first = bench.claim().unwrap();
    bench.ring(1, 1, 10);
    bench.tell(Event::ClaimUnknown);
    assert!(bench.actions.contains(&Action::Pause) && bench.actions.contains(&Action::GiveBack(vec![2])));
    assert_eq!(bench.dispatch.doorbell_room(), 0);
    bench.wait(SECOND);
    let again = bench.claim().unwrap();
    assert_eq!((again.id, again.is_retry), (first.id, true));
    bench.tell(Event::Claimed { claimed: Vec::new(), is_recovered: false, poll: None });
    assert!(bench.actions.contains(&Action::Resume));
}

#[test]
fn recovered_attempts_keep_the_rest_of_their_own_lease() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 2, 10);
    let (id, jobs) = bench.jobs();
    let early = bench.claimed(id, &jobs[0]);
    let begun = bench.now.monotonic;
    bench.wait(20 * SECOND);
    bench.tell(Event::ClaimUnknown);
    bench.wait(5 * SECOND);
    let late = bench.claimed(id, &jobs[1]);
    bench.tell(Event::ClaimUnknown);
    bench.wait(5 * SECOND);
    bench.tell(Event::Claimed { claimed: vec![early, late], is_recovered: true, poll: None });
    assert_eq!(bench.sent(), [begun + 50 * SECOND, begun + 75 * SECOND]);
}

#[test]
fn attempts_claimed_beyond_the_slots_by_several_tries_are_handed_back() {
    let mut bench = Bench::new(Limits { max_in_flight: 2, ..limits() });
    bench.ring(1, 2, 10);
    let (id, jobs) = bench.jobs();
    bench.tell(Event::ClaimUnknown);
    let extra = Job { delivery_id: DeliveryId(Uuid::from_u128(99)), ..jobs[0].clone() };
    let claimed = [&jobs[0], &jobs[1], &extra].map(|job| bench.claimed(id, job)).to_vec();
    bench.tell(Event::Claimed { claimed, is_recovered: true, poll: None });
    assert_eq!(bench.sent().len(), 2);
    let results = bench.record().unwrap().results;
    assert!(matches!(results[..], [AttemptResult { settlement: Settlement::HandedBack(_), .. }]));
}

#[test]
fn attempts_claimed_beyond_their_destinations_limit_by_several_tries_are_handed_back() {
    let mut bench = Bench::new(Limits { max_in_flight_per_destination: 2, ..limits() });
    bench.ring(1, 2, 10);
    let (id, jobs) = bench.jobs();
    bench.tell(Event::ClaimUnknown);
    let other = |id, destination| Job {
        delivery_id: DeliveryId(Uuid::from_u128(id)),
        destination: Destination::from(destination),
        ..jobs[0].clone()
    };
    let (excess, elsewhere) = (other(98, 1), other(99, 2));
    let claimed = [&jobs[0], &jobs[1], &excess, &elsewhere].map(|job| bench.claimed(id, job)).to_vec();
    bench.tell(Event::Claimed { claimed, is_recovered: true, poll: None });
    assert_eq!(bench.sent().len(), 3);
    let results = bench.record().unwrap().results;
    assert_eq!(results.iter().map(|result| result.delivery_id).collect::<Vec<_>>(), [excess.delivery_id]);
}

#[test]
fn a_destination_full_by_bytes_is_polled_again_when_an_attempt_to_it_ends() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 100);
    let held = bench.commit();
    bench.wait(SECOND);
    assert_eq!(bench.plan().targets, []);
    bench.poll(PollResult { limited: vec![Destination::from(1)], ..PollResult::default() });
    for _ in 0..5 {
        bench.wait(SECOND);
        let plan = bench.plan();
        assert_eq!(
            (plan.targets.as_slice(), plan.rooms.get(&Destination::from(1))),
            ([].as_slice(), Some(&0))
        );
        bench.poll(PollResult { limited: vec![Destination::from(1)], ..PollResult::default() });
    }
    bench.end(&held[0], answered(200));
    bench.wait(Duration::from_millis(5));
    assert_eq!(bench.plan().targets, [Destination::from(1)]);
}

#[test]
fn a_refused_claim_halves_until_the_row_is_known_and_steps_over_it() {
    let mut bench = Bench::new(limits());
    let rows: Vec<DeliveryId> = (1..=8).map(|id| DeliveryId(Uuid::from_u128(id))).collect();
    bench.wait(SECOND);
    for count in [8, 4, 2, 1] {
        assert_eq!(bench.plan().room, count);
        bench.tell(Event::ClaimRefused { rows: rows[..count].to_vec() });
    }
    assert!(bench.actions.iter().any(|action| matches!(action, Action::StepOver { .. })));
    let plan = bench.plan();
    assert_eq!((plan.stepped_over, plan.room), (vec![rows[0]], 1));
    bench.poll(PollResult::default());
    bench.wait(3 * SECOND);
    let plan = bench.plan();
    assert_eq!((plan.stepped_over.len(), plan.room), (0, 2), "tried again, and more at once");
}

//! Results, recovery of leases, local troubles, and the end.

use super::*;
use crate::dispatch::pace::GATHERING;

#[test]
fn results_gather_while_a_batch_is_written() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 3, 10);
    let held = bench.commit();
    bench.end(&held[0], answered(200));
    let first = bench.record().unwrap();
    assert_eq!(first.results.len(), 1);
    bench.end(&held[1], answered(200));
    bench.end(&held[2], answered(200));
    assert_eq!(bench.record(), None);
    bench.tell(Event::Recorded { id: first.id, effects: vec![Effect::Recorded] });
    assert_eq!(bench.record().unwrap().results.len(), 2);
}

#[test]
fn claims_and_results_gather_briefly_at_full_load() {
    let many = Limits { max_in_flight: 256, max_in_flight_per_destination: 256, ..limits() };
    let mut bench = Bench::new(many);
    let mut held = Vec::new();
    for destination in 0..9 {
        bench.ring(destination, 4, 1);
        bench.wait(GATHERING);
        held.extend(bench.commit());
    }
    bench.ring(9, 1, 1);
    assert_eq!(bench.claim(), None);
    bench.end(&held[0], answered(200));
    let Batch { id, .. } = bench.record().expect("no batch was recorded recently");
    bench.tell(Event::Recorded { id, effects: vec![Effect::Recorded] });
    bench.end(&held[1], answered(200));
    assert_eq!(bench.record(), None);
    bench.wait(GATHERING);
    assert_eq!(bench.jobs().1.len(), 1);
    assert_eq!(bench.record().unwrap().results.len(), 1);
}

#[test]
fn a_refused_batch_is_halved_and_a_rejected_result_retried_separately() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let first = bench.commit();
    bench.ring(2, 2, 10);
    let held = bench.commit();
    bench.end(&first[0], answered(200));
    let batch = bench.record().unwrap();
    held.iter().for_each(|held| bench.end(held, answered(200)));
    bench.tell(Event::Recorded { id: batch.id, effects: vec![Effect::Recorded] });
    let both = bench.record().unwrap();
    bench.tell(Event::RecordRefused { id: both.id, is_violation: false });
    let one = bench.record().unwrap();
    bench.tell(Event::RecordRefused { id: one.id, is_violation: false });
    let other = bench.record().unwrap();
    assert_eq!((one.results.len(), other.results.len()), (1, 1));
    bench.tell(Event::Recorded { id: other.id, effects: vec![Effect::Recorded] });
    assert_eq!(bench.dispatch.unrecorded_since(), Some(bench.now.monotonic));
    assert_eq!(bench.record(), None);
    bench.wait(SECOND);
    let again = bench.record().unwrap();
    assert_eq!(again.results, one.results);
    bench.tell(Event::RecordRefused { id: again.id, is_violation: true });
    let lost = Recorded { result: one.results[0].clone(), effect: None };
    assert!(bench.actions.contains(&Action::Report(lost)));
}

#[test]
fn results_that_the_database_refuses_occupy_only_slots_of_their_own_destination() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 4, 10);
    let held = bench.commit();
    held.iter().for_each(|held| bench.end(held, answered(200)));
    while let Some(Batch { id, .. }) = bench.record() {
        bench.tell(Event::RecordRefused { id, is_violation: false });
    }
    bench.ring(1, 1, 10);
    assert_eq!(bench.claim(), None);
    bench.ring(2, 4, 10);
    assert_eq!(bench.commit().len(), 4);
}

#[test]
fn attempts_claimed_for_a_destination_held_meanwhile_are_handed_back() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let held = bench.commit();
    bench.ring(1, 1, 10);
    let (id, jobs) = bench.jobs();
    bench.end(&held[0], retry_after(30));
    bench.sent();
    let claimed = vec![bench.claimed(id, &jobs[0])];
    bench.tell(Event::Claimed { claimed, is_recovered: false, poll: None });
    assert!(bench.sent().is_empty());
}

#[test]
fn a_destination_with_only_refused_rows_does_not_block_the_relay() {
    let mut bench = Bench::new(limits());
    bench.wait(SECOND);
    let before = bench.plan().cursor;
    bench.tell(Event::ClaimRefused { rows: vec![DeliveryId(Uuid::from_u128(1))] });
    assert_ne!(bench.plan().cursor, before);
}

#[test]
fn expired_leases_that_cannot_be_read_reverse_the_order_of_recovery() {
    let mut bench = Bench::new(limits());
    bench.wait(SECOND);
    let mut recovery = || {
        bench.wait(SECOND);
        let recovery = bench.take(|action| match action {
            Action::RecoverLeases(recovery) => Some(recovery.clone()),
            _ => None,
        });
        bench.tell(Event::RecoveryRefused { rows: Vec::new() });
        recovery.unwrap().is_reversed
    };
    assert_eq!([recovery(), recovery(), recovery()], [false, true, false]);
}

#[test]
fn a_result_whose_row_is_locked_is_retried_separately() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let held = bench.commit();
    bench.end(&held[0], answered(200));
    let batch = bench.record().unwrap();
    bench.tell(Event::Recorded { id: batch.id, effects: vec![Effect::Locked] });
    assert_eq!(bench.record(), None);
    bench.wait(SECOND);
    assert_eq!(bench.record().unwrap().results, batch.results);
}

#[test]
fn a_local_trouble_hands_attempts_back_and_reduces_claims_until_it_is_over() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 4, 10);
    let held = bench.commit();
    held.iter().for_each(|held| bench.end(held, Outcome::NotSent(LocalFailure::NoSocket)));
    assert_eq!(bench.dispatch.troubles(), [LocalFailure::NoSocket]);
    let troubles = bench.actions.iter().filter(|action| matches!(action, Action::Trouble(_)));
    assert_eq!(troubles.count(), 1, "logged once");
    bench.ring(2, 1, 10);
    assert_eq!(bench.claim(), None);
    bench.wait(Duration::from_millis(150));
    let held = bench.commit();
    bench.end(&held[0], answered(200));
    assert_eq!(bench.dispatch.troubles(), [LocalFailure::NoSocket], "one may get through while it lasts");
    bench.wait(6 * SECOND);
    while bench.claim().is_some() {
        bench.poll(PollResult::default());
    }
    bench.ring(2, 1, 10);
    let held = bench.commit();
    bench.end(&held[0], answered(200));
    assert!(bench.dispatch.troubles().is_empty());
    assert!(bench.actions.contains(&Action::TroubleOver(LocalFailure::NoSocket)));
}

#[test]
fn refused_lease_recoveries_are_halved_and_stepped_over() {
    let mut bench = Bench::new(limits());
    let recovery = |bench: &mut Bench| {
        bench.take(|action| match action {
            Action::RecoverLeases(recovery) => Some(recovery.clone()),
            _ => None,
        })
    };
    bench.wait(SECOND);
    let (one, other) = (DeliveryId(Uuid::from_u128(1)), DeliveryId(Uuid::from_u128(2)));
    assert_eq!(recovery(&mut bench).unwrap().limit, BATCH);
    bench.tell(Event::RecoveryRefused { rows: vec![one, other] });
    assert_eq!(recovery(&mut bench).unwrap().limit, 1);
    bench.tell(Event::RecoveryRefused { rows: vec![one] });
    assert_eq!(recovery(&mut bench).unwrap().stepped_over, [one]);
    bench.tell(Event::LeasesRecovered { count: 1 });
    assert!(recovery(&mut bench).is_some(), "there may be more");
}

#[test]
fn a_stop_ends_claims_and_attempts_in_flight_are_still_recorded() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let held = bench.commit();
    bench.ring(1, 1, 10);
    let (id, jobs) = bench.jobs();
    bench.ring(1, 1, 10);
    bench.tell(Event::Stop);
    assert!(bench.actions.contains(&Action::GiveBack(vec![3])));
    let claimed = vec![bench.claimed(id, &jobs[0])];
    let second = claimed[0].held.clone();
    bench.tell(Event::Claimed { claimed, is_recovered: false, poll: None });
    bench.wait(SECOND);
    assert_eq!(bench.claim(), None);
    for held in [&held[0], &second] {
        bench.end(held, answered(200));
        let batch = bench.record().unwrap();
        assert!(!bench.actions.contains(&Action::Stopped));
        bench.tell(Event::Recorded { id: batch.id, effects: vec![Effect::Recorded] });
    }
    assert!(bench.actions.contains(&Action::Stopped));
}

//! Holds: a destination waits because its receiver requested it, and then one attempt is sent first.

use std::time::Duration;

use ::store::{
    DeliveryFilter, DeliveryParts, PageRequest, Redelivery, claim_due, claimed_under, deliveries_page,
    forget_holds,
};
use contracts::{ClaimId, DeliveryId, DeliveryStatus, InFlight};
use engine::{AttemptResult, ByteRoom, Claimed, Effect, HoldChange, RelayPlan, Settlement};
use testkit::Backend;

use crate::stage::{
    GRACE, LEASE, MICROSECOND, Stage, URL, accepted, as_read_back, at_once, failed, handed_back, ids, plan,
    retried, succeeded,
};

testkit::on_both_backends!(
    a_held_destination_waits_without_spending_attempts_and_others_do_not,
    no_doorbell_is_served_while_a_destination_has_a_hold,
    a_held_target_gets_no_attempts,
    when_a_hold_ends_one_attempt_goes_first,
    of_many_relays_exactly_one_gets_the_probe,
    a_probe_that_is_answered_opens_its_destination,
    a_probe_answered_with_another_wait_holds_the_destination_again,
    a_probe_that_was_not_sent_is_replaced,
    a_lost_probe_is_replaced_when_its_lease_ends,
    a_probe_that_does_not_fit_has_not_begun,
    a_hold_set_while_a_probe_is_in_flight_outlasts_the_probe,
    a_result_of_an_older_probe_does_not_end_the_newer_one,
    holds_only_grow,
    a_late_result_holds_nothing,
    a_probe_is_read_back_as_a_probe_by_its_claim_id,
    a_hold_is_deleted_an_hour_after_its_end_unless_a_delivery_waits,
    next_attempt_at_is_the_later_of_the_deliverys_own_and_its_destinations,
    a_delivery_of_a_held_destination_can_be_superseded_and_erased,
);

const OTHER_URL: &str = "https://other.example.com/";
const MINUTE: Duration = Duration::from_secs(60);

fn holding(result: AttemptResult, hold: HoldChange) -> AttemptResult {
    AttemptResult { hold, ..result }
}

/// Creates a destination whose hold has just ended, with `waiting` waiting deliveries.
fn half_open(stage: &mut Stage, waiting: usize) -> Vec<DeliveryId> {
    stage.hold(stage.now + MINUTE);
    let waiting = stage.accept_many(waiting);
    stage.advance(MINUTE);
    waiting
}

/// Claims the one attempt that is sent first.
fn probe(stage: &mut Stage) -> Claimed {
    let mut claimed = stage.claim_due(10);
    assert_eq!(claimed.len(), 1);
    assert!(claimed[0].held.is_probe);
    claimed.remove(0)
}

async fn a_held_destination_waits_without_spending_attempts_and_others_do_not(backend: Backend) {
    let mut stage = Stage::new(backend);
    let until = stage.now + MINUTE;
    stage.hold(until);
    let waiting = stage.accept_many(3);
    let other = stage.accept_to(OTHER_URL).id;
    stage.now = until - MICROSECOND;
    assert_eq!(ids(&stage.claim_due(10)), [other]);
    for id in waiting {
        let delivery = stage.delivery(id);
        assert_eq!((delivery.status_code, delivery.attempt_count), (DeliveryStatus::Pending, 0));
    }
    // Another organization's deliveries to the same URL are not affected.
    stage.org = stage.other_org();
    let theirs = stage.accept().id;
    stage.advance(GRACE);
    assert!(ids(&stage.claim_due(10)).contains(&theirs));
}

async fn no_doorbell_is_served_while_a_destination_has_a_hold(backend: Backend) {
    let mut stage = Stage::new(backend);
    let until = stage.now + MINUTE;
    stage.hold(until);
    let waiting = stage.accept().id;
    let job = stage.job(waiting, 1);
    assert_eq!(stage.claim(std::slice::from_ref(&job)), []);
    stage.now = until;
    assert_eq!(stage.claim(std::slice::from_ref(&job)), [], "its probe is the relay's");
    let probe = probe(&mut stage);
    stage.finish_one(holding(retried(&probe, stage.now), HoldChange::Open));
    stage.claim_one(waiting, 2);
}

async fn a_held_target_gets_no_attempts(backend: Backend) {
    let mut stage = Stage::new(backend);
    stage.hold(stage.now + MINUTE);
    stage.accept();
    let targets = RelayPlan { targets: vec![stage.destination(URL)], ..plan(10) };
    stage.advance(GRACE);
    assert_eq!(stage.poll(&targets).claimed, []);
    stage.advance(MINUTE);
    assert_eq!(stage.poll(&targets).claimed, [], "nor its probe");
}

async fn when_a_hold_ends_one_attempt_goes_first(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = half_open(&mut stage, 3);
    let probe = probe(&mut stage);
    assert!(waiting.contains(&probe.held.delivery_id));
    assert_eq!(stage.claim_due(10), [], "the others wait for its answer");
    let (destination, until) = (stage.destination(URL).as_i64(), stage.now);
    let lease_end = (stage.now + LEASE).as_micros();
    assert_eq!(stage.hold_rows(), [(destination, until.as_micros(), lease_end)]);
}

async fn of_many_relays_exactly_one_gets_the_probe(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 20);
    let poll = |tx: &mut _, now| claim_due(tx, now, LEASE, ClaimId::new(now), &plan(10));
    let dues = at_once(&stage.store().await, 16, poll).await;
    let claimed: Vec<_> = dues.into_iter().flat_map(|due| due.claimed).collect();
    assert_eq!(claimed.len(), 1);
    assert!(claimed[0].held.is_probe);
}

async fn a_probe_that_is_answered_opens_its_destination(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 3);
    let probe = probe(&mut stage);
    assert_eq!(stage.finish_one(holding(succeeded(&probe), HoldChange::Open)), Effect::Recorded);
    assert_eq!(stage.hold_rows(), []);
    let claimed = stage.claim_due(10);
    assert_eq!(claimed.len(), 2);
    assert!(claimed.iter().all(|claimed| !claimed.held.is_probe));
}

async fn a_probe_answered_with_another_wait_holds_the_destination_again(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 2);
    let probe_of_first = probe(&mut stage);
    let again = HoldChange::HoldUntil(stage.now + MINUTE);
    stage.finish_one(holding(retried(&probe_of_first, stage.now), again));
    let until = (stage.now + MINUTE).as_micros();
    assert_eq!(stage.hold_rows(), [(stage.destination(URL).as_i64(), until, 0)]);
    stage.advance(MINUTE - MICROSECOND);
    assert_eq!(stage.claim_due(10), []);
    stage.advance(MICROSECOND);
    probe(&mut stage);
}

async fn a_probe_that_was_not_sent_is_replaced(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 2);
    let first = probe(&mut stage);
    let later = stage.now + MINUTE;
    assert_eq!(
        stage.finish_one(holding(handed_back(&first, later), HoldChange::ProbeAgain)),
        Effect::Recorded
    );
    let second = probe(&mut stage);
    assert_ne!(first.held.delivery_id, second.held.delivery_id);
}

async fn a_lost_probe_is_replaced_when_its_lease_ends(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 2);
    let first = probe(&mut stage);
    stage.advance(LEASE - MICROSECOND);
    assert_eq!(stage.claim_due(10), []);
    stage.advance(MICROSECOND);
    let recovered = stage.recover(Settlement::RetryAt(stage.now + MINUTE));
    assert_eq!(recovered, std::slice::from_ref(&first.held));
    let second = probe(&mut stage);
    assert_ne!(first.held.delivery_id, second.held.delivery_id);
}

async fn a_probe_that_does_not_fit_has_not_begun(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 1);
    let bytes = ByteRoom { free: 1, is_idle: false, per_destination: u64::MAX };
    let due = stage.poll(&RelayPlan { bytes, ..plan(10) });
    assert!(due.claimed.is_empty() && due.poll.too_large.is_some());
    probe(&mut stage);
}

async fn a_hold_set_while_a_probe_is_in_flight_outlasts_the_probe(backend: Backend) {
    let mut stage = Stage::new(backend);
    let straggler = stage.claimed();
    half_open(&mut stage, 3);
    let probe_then = probe(&mut stage);
    let until = stage.now + MINUTE;
    stage.finish_one(holding(retried(&straggler, stage.now), HoldChange::HoldUntil(until)));
    stage.finish_one(holding(succeeded(&probe_then), HoldChange::Open));
    assert_eq!(stage.hold_rows(), [(stage.destination(URL).as_i64(), until.as_micros(), 0)]);
    assert_eq!(stage.claim_due(10), []);
    stage.now = until;
    probe(&mut stage);
}

/// The older probe's lease has ended but was not recovered.
async fn a_result_of_an_older_probe_does_not_end_the_newer_one(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 3);
    let older = probe(&mut stage);
    stage.advance(LEASE);
    let newer = probe(&mut stage);
    let before = stage.hold_rows();
    assert_eq!(stage.finish_one(holding(succeeded(&older), HoldChange::Open)), Effect::Recorded);
    assert_eq!(stage.hold_rows(), before);
    stage.advance(LEASE);
    let newest = probe(&mut stage);
    // The same holds when both results are in one batch, in any order.
    let batch = [
        holding(succeeded(&newer), HoldChange::Open),
        holding(handed_back(&newest, stage.now), HoldChange::ProbeAgain),
    ];
    stage.finish(&batch);
    assert_eq!(stage.hold_rows(), [(before[0].0, before[0].1, 0)], "another one may go");
}

async fn holds_only_grow(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed: Vec<_> = (0..4).map(|_| stage.claimed()).collect();
    let minutes = |stage: &Stage, minutes: u32| HoldChange::HoldUntil(stage.now + MINUTE * minutes);
    let batch: Vec<_> = [2, 3, 1]
        .iter()
        .zip(&claimed)
        .map(|(length, claimed)| holding(retried(claimed, stage.now), minutes(&stage, *length)))
        .collect();
    stage.finish(&batch);
    let held = [(stage.destination(URL).as_i64(), (stage.now + MINUTE * 3).as_micros(), 0)];
    assert_eq!(stage.hold_rows(), held);
    stage.finish_one(holding(failed(&claimed[3]), minutes(&stage, 1)));
    assert_eq!(stage.hold_rows(), held);
}

async fn a_late_result_holds_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.lose(&claimed);
    let late = holding(retried(&claimed, stage.now), HoldChange::HoldUntil(stage.now + MINUTE));
    assert_eq!(stage.finish_one(late), Effect::Late { closed: false });
    assert_eq!(stage.hold_rows(), []);
}

async fn a_probe_is_read_back_as_a_probe_by_its_claim_id(backend: Backend) {
    let mut stage = Stage::new(backend);
    half_open(&mut stage, 1);
    let other = stage.accept_to(OTHER_URL).id;
    stage.advance(GRACE);
    let mut claimed = as_read_back(stage.claim_due(10));
    let mut again = claimed_under(&mut stage.conn, claimed[0].held.claim_id).unwrap();
    for claimed in [&mut claimed, &mut again] {
        claimed.sort_unstable_by_key(|claimed| claimed.held.delivery_id);
    }
    assert_eq!(again, claimed);
    let is_probe = |claimed: &&Claimed| claimed.held.is_probe;
    assert_eq!(claimed.iter().filter(is_probe).count(), 1);
    assert!(claimed.iter().any(|claimed| claimed.held.delivery_id == other && !claimed.held.is_probe));
}

async fn a_hold_is_deleted_an_hour_after_its_end_unless_a_delivery_waits(backend: Backend) {
    let mut stage = Stage::new(backend);
    let forget = |stage: &mut Stage| {
        let now = stage.now;
        stage.write(|tx| forget_holds(tx, now))
    };
    stage.hold(stage.now);
    stage.advance(Duration::from_secs(3600) - MICROSECOND);
    assert_eq!(forget(&mut stage), 0);
    let waiting = stage.accept();
    stage.advance(MICROSECOND);
    assert_eq!(forget(&mut stage), 0, "it is to be the probe");
    stage.advance(GRACE);
    let probe = probe(&mut stage);
    assert_eq!(forget(&mut stage), 0, "it is on its way");
    assert_eq!(probe.held.delivery_id, waiting.id);
    stage.finish_one(holding(failed(&probe), HoldChange::ProbeAgain));
    assert_eq!(forget(&mut stage), 1);
    assert_eq!(stage.hold_rows(), []);
}

async fn next_attempt_at_is_the_later_of_the_deliverys_own_and_its_destinations(backend: Backend) {
    let mut stage = Stage::new(backend);
    let until = stage.now + MINUTE;
    let retried_later = stage.claimed();
    stage.finish_one(retried(&retried_later, until + MINUTE));
    stage.hold(until);
    let waiting = stage.accept();
    let other = stage.accept_to(OTHER_URL);
    assert_eq!(waiting.next_attempt_at, Some(stage.now), "it is accepted as ever");
    let shown = |stage: &mut Stage, id| stage.delivery(id).next_attempt_at;
    assert_eq!(shown(&mut stage, waiting.id), Some(until));
    assert_eq!(shown(&mut stage, other.id), Some(stage.now));
    assert_eq!(shown(&mut stage, retried_later.held.delivery_id), Some(until + MINUTE));

    let of_run = testkit::deliveries_of_run(&mut stage.conn, stage.org, waiting.run_id).unwrap().unwrap();
    assert_eq!(of_run[0].next_attempt_at, Some(until));
    let request = PageRequest { limit: 10, ..PageRequest::NEWEST };
    let page =
        deliveries_page(&mut stage.conn, stage.org, &DeliveryFilter::default(), &request, DeliveryParts::ALL)
            .unwrap();
    for (_, delivery) in page.rows {
        assert_eq!(delivery.next_attempt_at, shown(&mut stage, delivery.id));
    }
    let in_flight = InFlight { delivery_id: waiting.id, next_attempt_at: Some(until) };
    assert_eq!(stage.redeliver(waiting.run_id), Redelivery::InFlight(in_flight));

    stage.now = until;
    let claimed = stage.claim_due(10);
    assert_eq!(ids(&claimed).len(), 2);
    for claimed in claimed {
        assert_eq!(shown(&mut stage, claimed.held.delivery_id), None, "it is on its way");
    }
}

async fn a_delivery_of_a_held_destination_can_be_superseded_and_erased(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let hold = HoldChange::HoldUntil(stage.now + MINUTE);
    stage.finish_one(holding(retried(&claimed, stage.now), hold));
    let run = claimed.held.run_id;
    let request = ::store::RedeliveryRequest {
        org_id: stage.org,
        run_id: run,
        request: "req".into(),
        supersede: true,
        idempotency_key: None,
    };
    let now = stage.now;
    let mut answers =
        stage.write(|tx| ::store::redeliver_batch(tx, now, &crate::stage::POLICY, &[request], usize::MAX));
    let new = accepted(answers.remove(0));
    assert_eq!(stage.delivery(claimed.held.delivery_id).status_code, DeliveryStatus::Failed);
    let org = stage.org;
    let erased = stage.write(|tx| ::store::erase_run(tx, now, org, run));
    assert!(matches!(erased, ::store::Erasure::Erased { deliveries: 2, .. }));
    assert_eq!(stage.delivery(new.id).status_code, DeliveryStatus::Failed);
}

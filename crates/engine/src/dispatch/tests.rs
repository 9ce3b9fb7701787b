//! Tests that step the machine event by event, without a clock or real waits.

use std::time::Duration;

use bytes::Bytes;
use contracts::{ClaimId, DeliveryId, Destination, FailureReason, Job, OrgId, RunId, Timestamp};
use uuid::Uuid;

use super::*;
use crate::fairness::RelayPlan;
use crate::outcome::Response;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        max_in_flight: 8,
        max_in_flight_bytes: 1_000,
        max_in_flight_per_destination: 4,
        lease: LEASE,
        timeout: 10 * SECOND,
        retry: RetryPolicy {
            schedule: vec![10 * SECOND],
            jitter: 0.0,
            stop_on_gone: false,
            hold_cap: 900 * SECOND,
        },
    }
}

/// A machine, its time and its pending actions.
struct Bench {
    dispatch: Dispatch,
    now: Now,
    actions: Vec<Action>,
    tokens: u64,
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        let now = Now { monotonic: 1_000 * SECOND, clock: Timestamp::from_micros(1_000_000_000) };
        let mut bench =
            Bench { dispatch: Dispatch::new(limits, 7, now), now, actions: Vec::new(), tokens: 0 };
        // The first poll finds nothing, and neither does lease recovery.
        bench.tell(Event::Tick);
        bench.look(Look::default());
        bench.tell(Event::LeasesRecovered { count: 0 });
        bench.actions.clear();
        bench
    }

    fn tell(&mut self, event: Event) {
        self.actions.extend(self.dispatch.handle(event, self.now));
    }

    fn wait(&mut self, wait: Duration) {
        self.now.monotonic += wait;
        self.now.clock = self.now.clock + wait;
        self.tell(Event::Tick);
    }

    /// Reports doorbells for `count` new deliveries.
    fn ring(&mut self, destination: i64, count: u64, size: u64) {
        let doorbells = (0..count).map(|_| {
            self.tokens += 1;
            let job = Job {
                delivery_id: DeliveryId(Uuid::from_u128(self.tokens.into())),
                attempt: 1,
                destination: Destination::from(destination),
                payload_size: Some(size),
                org_id: OrgId(Uuid::nil()),
                request_id: "r".to_owned(),
            };
            Doorbell { token: self.tokens, job }
        });
        let doorbells = doorbells.collect();
        self.tell(Event::Doorbells(doorbells));
    }

    fn take<T>(&mut self, wanted: impl Fn(&Action) -> Option<T>) -> Option<T> {
        let index = self.actions.iter().position(|action| wanted(action).is_some())?;
        wanted(&self.actions.remove(index))
    }

    fn claim(&mut self) -> Option<Claim> {
        self.take(|action| match action {
            Action::Claim(claim) => Some(claim.clone()),
            _ => None,
        })
    }

    fn jobs(&mut self) -> (ClaimId, Vec<Job>) {
        match self.claim() {
            Some(Claim { id, source: ClaimSource::Doorbells(jobs), .. }) => (id, jobs),
            other => panic!("expected a claim by doorbells, got {other:?}"),
        }
    }

    fn plan(&mut self) -> RelayPlan {
        match self.claim() {
            Some(Claim { source: ClaimSource::Relay(plan), .. }) => plan,
            other => panic!("expected a poll, got {other:?}"),
        }
    }

    fn claimed(&self, claim_id: ClaimId, job: &Job) -> Claimed {
        Claimed {
            held: HeldAttempt {
                delivery_id: job.delivery_id,
                org_id: job.org_id,
                run_id: RunId(Uuid::nil()),
                destination: job.destination,
                attempt: job.attempt,
                max_attempts: 8,
                request_id: "r".to_owned(),
                claim_id,
                claimed_at: self.now.clock,
                is_probe: false,
            },
            callback_url: "http://example.com/".to_owned(),
            payload: Bytes::from(vec![b' '; usize::try_from(job.payload_size.unwrap_or(0)).unwrap()]),
            signing_secret_id: None,
        }
    }

    /// Commits the claim by doorbells. Returns its attempts.
    fn commit(&mut self) -> Vec<HeldAttempt> {
        let (id, jobs) = self.jobs();
        let claimed: Vec<Claimed> = jobs.iter().map(|job| self.claimed(id, job)).collect();
        let held = claimed.iter().map(|claimed| claimed.held.clone()).collect();
        self.tell(Event::Claimed { claimed, is_recovered: false, look: None });
        held
    }

    /// Reports a poll that claimed nothing.
    fn look(&mut self, look: Look) {
        self.tell(Event::Claimed { claimed: Vec::new(), is_recovered: false, look: Some(look) });
    }

    fn end(&mut self, held: &HeldAttempt, outcome: Outcome) {
        self.tell(Event::Ended { key: held.key(), outcome, measured: Measured::default() });
    }

    fn record(&mut self) -> Option<Batch> {
        self.take(|action| match action {
            Action::Record(batch) => Some(batch.clone()),
            _ => None,
        })
    }

    fn acknowledged(&mut self) -> Vec<u64> {
        let mut tokens = Vec::new();
        while let Some(more) = self.take(|action| match action {
            Action::Acknowledge(tokens) => Some(tokens.clone()),
            _ => None,
        }) {
            tokens.extend(more);
        }
        tokens
    }

    fn sent(&mut self) -> Vec<Duration> {
        let mut sent = Vec::new();
        while let Some(send_before) = self.take(|action| match action {
            Action::Send { send_before, .. } => Some(*send_before),
            _ => None,
        }) {
            sent.push(send_before);
        }
        sent
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered(Response { status, body: String::new(), retry_after: Vec::new() })
}

fn retry_after(seconds: u64) -> Outcome {
    let retry_after = vec![seconds.to_string()];
    Outcome::Answered(Response { status: 429, body: String::new(), retry_after })
}

#[test]
fn a_lone_doorbell_is_claimed_at_once_and_acknowledged_after_its_claim_has_committed() {
    let mut bench = Bench::new(limits());
    bench.ring(1, 1, 10);
    let (id, jobs) = bench.jobs();
    assert_eq!(jobs.len(), 1);
    assert!(bench.acknowledged().is_empty());
    let claimed = vec![bench.claimed(id, &jobs[0])];
    bench.tell(Event::Claimed { claimed, is_recovered: false, look: None });
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
            bench.look(Look::default());
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
    bench.look(Look { too_large: Some(950), ..Look::default() });
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
    bench.tell(Event::Claimed { claimed: Vec::new(), is_recovered: false, look: None });
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
    bench.tell(Event::Claimed { claimed: vec![early, late], is_recovered: true, look: None });
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
    bench.tell(Event::Claimed { claimed, is_recovered: true, look: None });
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
    bench.tell(Event::Claimed { claimed, is_recovered: true, look: None });
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
    bench.look(Look { limited: vec![Destination::from(1)], ..Look::default() });
    for _ in 0..5 {
        bench.wait(SECOND);
        let plan = bench.plan();
        assert_eq!(
            (plan.targets.as_slice(), plan.rooms.get(&Destination::from(1))),
            ([].as_slice(), Some(&0))
        );
        bench.look(Look { limited: vec![Destination::from(1)], ..Look::default() });
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
    bench.look(Look::default());
    bench.wait(3 * SECOND);
    let plan = bench.plan();
    assert_eq!((plan.stepped_over.len(), plan.room), (0, 2), "tried again, and more at once");
}

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
    bench.tell(Event::Claimed { claimed, is_recovered: false, look: None });
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
        bench.look(Look::default());
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
    bench.tell(Event::Claimed { claimed, is_recovered: false, look: None });
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

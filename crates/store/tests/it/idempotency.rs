//! Repeated requests, and redeliveries that supersede a waiting delivery.

use std::time::Duration;

use ::store::{
    IdempotencyKey, PruneRange, Redelivery, RedeliveryRequest, forget_idempotency_keys, prune,
    redeliver_batch,
};
use contracts::{Delivery, DeliveryId, DeliveryStatus, FailureReason, InFlight, OrgId, RunId};
use testkit::Backend;

use crate::stage::{MICROSECOND, POLICY, Stage, accepted, at_once, new_run, retried, succeeded};

testkit::on_both_backends!(
    a_repeated_request_gets_the_same_answer_and_changes_nothing,
    a_repeated_request_changes_nothing_when_its_delivery_was_pruned,
    the_same_key_with_another_request_is_refused,
    keys_belong_to_their_organization,
    a_refused_request_leaves_its_key_free,
    a_key_is_forgotten_after_a_day,
    of_many_requests_with_one_key_exactly_one_is_accepted,
    requests_of_one_batch_with_one_key_are_one_request,
    requests_of_one_batch_with_one_key_may_differ,
    only_a_delivery_that_waits_for_its_retry_is_superseded,
    a_superseded_delivery_has_ended,
);

const DAY: Duration = Duration::from_secs(24 * 3600);

fn key(name: &str, request: u8) -> IdempotencyKey {
    IdempotencyKey { key: name.to_owned(), request_sha256: [request; 32] }
}

fn request(org_id: OrgId, run_id: RunId, key: Option<IdempotencyKey>) -> RedeliveryRequest {
    RedeliveryRequest { org_id, run_id, request: "req".into(), supersede: false, idempotency_key: key }
}

fn keyed(stage: &mut Stage, run: RunId, key: IdempotencyKey) -> Redelivery {
    let request = request(stage.org, run, Some(key));
    redeliver_batch(&mut stage.conn, stage.now, &POLICY, &[request], usize::MAX).unwrap().remove(0)
}

fn superseding(stage: &mut Stage, run: RunId) -> Redelivery {
    let request = RedeliveryRequest { supersede: true, ..request(stage.org, run, None) };
    redeliver_batch(&mut stage.conn, stage.now, &POLICY, &[request], usize::MAX).unwrap().remove(0)
}

fn finish(stage: &mut Stage, delivery: DeliveryId) {
    let claimed = stage.claim_one(delivery, 1);
    stage.finish_one(succeeded(&claimed));
}

async fn a_repeated_request_gets_the_same_answer_and_changes_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let first = accepted(keyed(&mut stage, run, key("k", 1)));
    stage.advance(MICROSECOND);
    assert_eq!(keyed(&mut stage, run, key("k", 1)), Redelivery::Repeated(first.clone()));
    finish(&mut stage, first.id);
    assert_eq!(keyed(&mut stage, run, key("k", 1)), Redelivery::Repeated(first));
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 1);
}

async fn a_repeated_request_changes_nothing_when_its_delivery_was_pruned(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let first = accepted(keyed(&mut stage, run, key("k", 1)));
    finish(&mut stage, first.id);
    stage.advance(MICROSECOND);
    for range in PruneRange::all_of(stage.org, Some(stage.now), None) {
        stage.write(|tx| prune(tx, range, None, 10));
    }
    assert_eq!(keyed(&mut stage, run, key("k", 1)), Redelivery::RepeatedButPruned);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 0);
}

async fn the_same_key_with_another_request_is_refused(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (run, other) = (stage.run(), stage.run());
    accepted(keyed(&mut stage, run, key("k", 1)));
    assert_eq!(keyed(&mut stage, other, key("k", 2)), Redelivery::KeyReused);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 1);
}

async fn keys_belong_to_their_organization(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    accepted(keyed(&mut stage, run, key("k", 1)));
    stage.org = stage.other_org();
    let theirs = stage.run();
    accepted(keyed(&mut stage, theirs, key("k", 2)));
}

async fn a_refused_request_leaves_its_key_free(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    assert_eq!(keyed(&mut stage, new_run(), key("k", 1)), Redelivery::RunNotFound);
    let open = accepted(stage.redeliver(run));
    let in_flight = InFlight { delivery_id: open.id, next_attempt_at: Some(stage.now) };
    assert_eq!(keyed(&mut stage, run, key("k", 2)), Redelivery::InFlight(in_flight));
    assert_eq!(stage.number("SELECT count(*) FROM idempotency_keys"), 0);
    finish(&mut stage, open.id);
    accepted(keyed(&mut stage, run, key("k", 3)));
}

async fn a_key_is_forgotten_after_a_day(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let first = accepted(keyed(&mut stage, run, key("k", 1)));
    finish(&mut stage, first.id);
    stage.now = first.created_at + DAY - MICROSECOND;
    assert!(!forget_idempotency_keys(&mut stage.conn, stage.now).unwrap());
    assert_eq!(keyed(&mut stage, run, key("k", 1)), Redelivery::Repeated(first));
    stage.advance(MICROSECOND);
    // It can be taken again, whether or not the old key has been deleted.
    let second = accepted(keyed(&mut stage, run, key("k", 2)));
    assert_eq!(keyed(&mut stage, run, key("k", 2)), Redelivery::Repeated(second.clone()));
    forget_idempotency_keys(&mut stage.conn, stage.now).unwrap();
    assert_eq!(stage.number("SELECT count(*) FROM idempotency_keys"), 1);
    stage.now = second.created_at + DAY;
    forget_idempotency_keys(&mut stage.conn, stage.now).unwrap();
    assert_eq!(stage.number("SELECT count(*) FROM idempotency_keys"), 0);
}

async fn of_many_requests_with_one_key_exactly_one_is_accepted(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (run, org) = (stage.run(), stage.org);
    let store = stage.store().await;
    let answers = at_once(&store, 32, move |tx, now| {
        redeliver_batch(tx, now, &POLICY, &[request(org, run, Some(key("k", 1)))], usize::MAX)
    });
    one_accepted_the_others_repeated(answers.await.into_iter().flatten());
}

async fn requests_of_one_batch_with_one_key_are_one_request(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (run, org) = (stage.run(), stage.org);
    let requests = vec![request(org, run, Some(key("k", 1))); 5];
    let answers = redeliver_batch(&mut stage.conn, stage.now, &POLICY, &requests, usize::MAX).unwrap();
    one_accepted_the_others_repeated(answers.into_iter());
}

async fn requests_of_one_batch_with_one_key_may_differ(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (first, second, org) = (stage.run(), stage.run(), stage.org);
    let requests = [request(org, first, Some(key("k", 1))), request(org, second, Some(key("k", 2)))];
    let mut answers = redeliver_batch(&mut stage.conn, stage.now, &POLICY, &requests, usize::MAX).unwrap();
    assert_eq!(answers.pop(), Some(Redelivery::KeyReused));
    accepted(answers.remove(0));
}

fn one_accepted_the_others_repeated(answers: impl Iterator<Item = Redelivery>) {
    let (new, repeated): (Vec<_>, Vec<_>) =
        answers.partition(|answer| matches!(answer, Redelivery::Accepted(_)));
    let [new] = <[_; 1]>::try_from(new).unwrap().map(accepted);
    assert!(!repeated.is_empty());
    for answer in repeated {
        assert_eq!(answer, Redelivery::Repeated(new.clone()));
    }
}

async fn only_a_delivery_that_waits_for_its_retry_is_superseded(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let old = accepted(superseding(&mut stage, run));
    let in_flight = |next_attempt_at| Redelivery::InFlight(InFlight { delivery_id: old.id, next_attempt_at });
    assert_eq!(superseding(&mut stage, run), in_flight(Some(stage.now)));
    let claimed = stage.claim_one(old.id, 1);
    assert_eq!(superseding(&mut stage, run), in_flight(None));
    let retry_at = stage.now + Duration::from_secs(10);
    stage.finish_one(retried(&claimed, retry_at));
    let new = accepted(superseding(&mut stage, run));
    assert_eq!(superseding(&mut stage, run), {
        Redelivery::InFlight(InFlight { delivery_id: new.id, next_attempt_at: Some(stage.now) })
    });
}

async fn a_superseded_delivery_has_ended(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let old = accepted(stage.redeliver(run));
    let claimed = stage.claim_one(old.id, 1);
    let retry_at = stage.now + Duration::from_secs(10);
    stage.finish_one(retried(&claimed, retry_at));
    stage.advance(MICROSECOND);
    accepted(superseding(&mut stage, run));
    let ended = stage.delivery(old.id);
    assert_eq!(
        Delivery { payload_bytes: String::new(), attempts: Vec::new(), ..ended },
        Delivery {
            payload_bytes: String::new(),
            status_code: DeliveryStatus::Failed,
            failure_reason_code: Some(FailureReason::Superseded),
            failure_detail: Some("a redelivery took its place".into()),
            attempt_count: 1,
            next_attempt_at: None,
            updated_at: stage.now,
            completed_at: Some(stage.now),
            ..old.clone()
        }
    );
    stage.now = retry_at;
    assert_eq!(stage.claim(&[stage.job(old.id, 2)]).len(), 0);
}

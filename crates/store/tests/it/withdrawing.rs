//! Withdrawing waiting deliveries.

use std::time::Duration;

use ::store::{DeliveryParts, IdempotencyKey, Withdrawal, claim_jobs, withdraw};
use contracts::{Attempt, ClaimId, Delivery, DeliveryId, DeliveryStatus, FailureReason};
use engine::Effect;
use testkit::Backend;

use crate::stage::{LEASE, MICROSECOND, Stage, accepted, at_once, failed, retried, succeeded};

testkit::on_both_backends!(
    a_waiting_delivery_is_withdrawn_attempted_or_not,
    a_delivery_that_is_in_flight_or_has_ended_is_not_withdrawn,
    withdrawing_again_changes_nothing,
    a_foreign_delivery_is_not_found,
    a_withdrawn_delivery_allows_another_one_of_its_run,
    a_delivery_of_a_held_destination_can_be_withdrawn,
    a_late_2xx_is_recorded_and_leaves_the_delivery_withdrawn,
    a_key_belongs_to_one_request_and_is_kept_only_after_a_withdrawal,
    a_claim_and_concurrent_withdrawals_agree_on_the_outcome,
    concurrent_withdrawals_with_one_key_get_the_same_answer,
);

fn withdrawn(stage: &mut Stage, id: DeliveryId) -> Withdrawal {
    keyed(stage, id, None)
}

fn keyed(stage: &mut Stage, id: DeliveryId, key: Option<&IdempotencyKey>) -> Withdrawal {
    let (now, org) = (stage.now, stage.org);
    stage.write(|tx| withdraw(tx, now, org, id, key))
}

fn key(request: u8) -> IdempotencyKey {
    IdempotencyKey { key: "k".to_owned(), request_sha256: [request; 32] }
}

/// Returns the delivery as the API shows it.
fn shown(stage: &mut Stage, id: DeliveryId) -> Delivery {
    let delivery = stage.delivery(id);
    let without_timing = |attempt| Attempt { timing: None, ..attempt };
    Delivery { attempts: delivery.attempts.into_iter().map(without_timing).collect(), ..delivery }
}

async fn a_waiting_delivery_is_withdrawn_attempted_or_not(backend: Backend) {
    let mut stage = Stage::new(backend);
    let untried = stage.accept().id;
    let claimed = stage.claimed();
    let retry_at = stage.now + Duration::from_secs(10);
    stage.finish_one(retried(&claimed, retry_at));
    let tried = claimed.held.delivery_id;
    stage.advance(MICROSECOND);
    for (id, next) in [(untried, 1), (tried, 2)] {
        let before = shown(&mut stage, id);
        let expected = Delivery {
            status_code: DeliveryStatus::Failed,
            failure_reason_code: Some(FailureReason::Withdrawn),
            failure_detail: Some("a client withdrew it".into()),
            next_attempt_at: None,
            updated_at: stage.now,
            completed_at: Some(stage.now),
            ..before
        };
        assert_eq!(withdrawn(&mut stage, id), Withdrawal::Withdrawn(expected.clone().into()));
        assert_eq!(shown(&mut stage, id), expected);
        assert_eq!(expected.attempts.len(), next - 1);
        stage.now = retry_at;
        assert_eq!(stage.claim(&[stage.job(id, i32::try_from(next).unwrap())]), []);
    }
    assert_eq!(stage.claim_due(10), []);
}

async fn a_delivery_that_is_in_flight_or_has_ended_is_not_withdrawn(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [sent, good, bad] = std::array::from_fn(|_| stage.claimed());
    stage.finish_one(succeeded(&good));
    stage.finish_one(failed(&bad));
    stage.advance(MICROSECOND);
    for (claimed, status) in [
        (&sent, DeliveryStatus::Delivering),
        (&good, DeliveryStatus::Succeeded),
        (&bad, DeliveryStatus::Failed),
    ] {
        let id = claimed.held.delivery_id;
        let before = stage.delivery(id);
        assert_eq!(withdrawn(&mut stage, id), Withdrawal::NotWaiting(status));
        assert_eq!(stage.delivery(id), before);
    }
    assert_eq!(stage.finish_one(succeeded(&sent)), Effect::Recorded);
}

async fn withdrawing_again_changes_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let id = stage.accept().id;
    let first = withdrawn(&mut stage, id);
    stage.advance(MICROSECOND);
    assert_eq!(withdrawn(&mut stage, id), first);
}

async fn a_foreign_delivery_is_not_found(backend: Backend) {
    let mut stage = Stage::new(backend);
    let id = stage.accept().id;
    let before = stage.delivery(id);
    let ours = stage.org;
    stage.org = stage.other_org();
    assert_eq!(withdrawn(&mut stage, id), Withdrawal::DeliveryNotFound);
    let unknown = DeliveryId::new(stage.now);
    assert_eq!(withdrawn(&mut stage, unknown), Withdrawal::DeliveryNotFound);
    stage.org = ours;
    assert_eq!(stage.delivery(id), before);
}

async fn a_withdrawn_delivery_allows_another_one_of_its_run(backend: Backend) {
    let mut stage = Stage::new(backend);
    let old = stage.accept();
    withdrawn(&mut stage, old.id);
    let new = accepted(stage.redeliver(old.run_id));
    assert_ne!(new.id, old.id);
    stage.claim_one(new.id, 1);
}

async fn a_delivery_of_a_held_destination_can_be_withdrawn(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept().id;
    stage.hold(stage.now + Duration::from_secs(60));
    let Withdrawal::Withdrawn(delivery) = withdrawn(&mut stage, waiting) else { panic!("it waits") };
    assert_eq!(delivery.next_attempt_at, None);
    assert_eq!(stage.count("destinations"), 1, "the destination stays held");
}

async fn a_late_2xx_is_recorded_and_leaves_the_delivery_withdrawn(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let id = claimed.held.delivery_id;
    stage.lose(&claimed);
    withdrawn(&mut stage, id);
    let before = stage.delivery(id);
    stage.advance(MICROSECOND);
    let late = succeeded(&claimed);
    assert_eq!(stage.finish_one(late), Effect::Late { closed: false });
    let after = stage.delivery(id);
    assert_eq!((after.attempts[0].status_code, &after.attempts[0].error_message), (Some(200), &None));
    assert_eq!(Delivery { attempts: before.attempts.clone(), ..after }, before);
    let Withdrawal::Withdrawn(again) = withdrawn(&mut stage, id) else { panic!("it stays withdrawn") };
    assert_eq!(*again, shown(&mut stage, id));
}

async fn a_key_belongs_to_one_request_and_is_kept_only_after_a_withdrawal(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let id = claimed.held.delivery_id;
    let is_being_sent = Withdrawal::NotWaiting(DeliveryStatus::Delivering);
    assert_eq!(keyed(&mut stage, id, Some(&key(1))), is_being_sent);
    let unknown = DeliveryId::new(stage.now);
    assert_eq!(keyed(&mut stage, unknown, Some(&key(2))), Withdrawal::DeliveryNotFound);
    assert_eq!(stage.count("idempotency_keys"), 0);

    stage.finish_one(retried(&claimed, stage.now));
    let first = keyed(&mut stage, id, Some(&key(1)));
    assert!(matches!(first, Withdrawal::Withdrawn(_)), "{first:?}");
    stage.advance(MICROSECOND);
    assert_eq!(keyed(&mut stage, id, Some(&key(1))), first);
    let other = stage.accept().id;
    assert_eq!(keyed(&mut stage, other, Some(&key(2))), Withdrawal::KeyReused);
    assert_eq!(stage.delivery(other).status_code, DeliveryStatus::Pending);
    assert_eq!(stage.count("idempotency_keys"), 1);
}

/// All callers agree on which came first.
async fn a_claim_and_concurrent_withdrawals_agree_on_the_outcome(backend: Backend) {
    let mut stage = Stage::new(backend);
    let store = stage.store().await;
    for _ in 0..25 {
        let delivery = stage.accept();
        let (id, org, jobs) = (delivery.id, stage.org, vec![stage.job(delivery.id, 1)]);
        let claiming = store.write(move |tx, now| claim_jobs(tx, now, LEASE, ClaimId::new(now), &jobs));
        let withdrawing = at_once(&store, 4, move |tx, now| withdraw(tx, now, org, id, None));
        let (claimed, answers) = tokio::join!(claiming, withdrawing);
        let is_claimed = !claimed.unwrap().is_empty();
        let expected = match is_claimed {
            true => Withdrawal::NotWaiting(DeliveryStatus::Delivering),
            false => Withdrawal::Withdrawn(shown(&mut stage, id).into()),
        };
        assert_eq!(answers, vec![expected; 4]);
        let ended = stage.delivery(id);
        assert_eq!((ended.completed_at.is_none(), ended.attempt_count == 1), (is_claimed, is_claimed));
    }
}

async fn concurrent_withdrawals_with_one_key_get_the_same_answer(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (id, org) = (stage.accept().id, stage.org);
    let store = stage.store().await;
    let answers = at_once(&store, 16, move |tx, now| withdraw(tx, now, org, id, Some(&key(1)))).await;
    let found = ::store::find_delivery(&mut stage.conn, org, id, DeliveryParts::SHOWN).unwrap().unwrap();
    assert_eq!(answers, vec![Withdrawal::Withdrawn(found.into()); 16]);
}

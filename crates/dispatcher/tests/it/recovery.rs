//! Dispatchers that stop, die or stall.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use contracts::{ClaimId, DeliveryStatus, FailureReason};
use store::{Erasure, StoreError, claim_jobs, erase_run, find_run};
use testkit::Engine;
use tokio::time::Instant;

use crate::harness::{Harness, PATIENCE, settings};
use crate::on_both_engines;

async fn a_shutdown_finishes_what_is_in_flight_and_claims_nothing_more(engine: Engine) {
    let mut harness = Harness::new(engine).await;
    let running = harness.dispatch(settings());
    let slow = harness.accept(&harness.receiver.url("/hang/1")).await;
    running.publisher.ring(harness.job(slow.id, 1));
    harness.arrival().await;
    running.shutdown.cancel();
    let never = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(never.id, 1));
    running.stop().await;
    assert_eq!(harness.delivery(slow.id).await.status_code, DeliveryStatus::Succeeded);
    let never = harness.delivery(never.id).await;
    assert_eq!((never.status_code, never.attempt_count), (DeliveryStatus::Pending, 0));
    assert_eq!(harness.receiver.posts(), 1);
}

async fn a_shutdown_does_not_wait_for_a_receiver_longer_than_it_may(engine: Engine) {
    let mut harness = Harness::new(engine).await;
    let running = harness.dispatch(dispatcher::Settings { drain: Duration::from_millis(100), ..settings() });
    let hanging = harness.accept(&harness.receiver.url("/hang/60")).await;
    running.publisher.ring(harness.job(hanging.id, 1));
    harness.arrival().await;
    running.stop().await;
    // Its lease decides what becomes of it.
    assert_eq!(harness.delivery(hanging.id).await.status_code, DeliveryStatus::Delivering);
}

async fn an_attempt_whose_dispatcher_died_becomes_outcome_unknown_and_is_tried_again(engine: Engine) {
    let mut harness = Harness::new(engine).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let job = harness.job(delivery.id, 1);
    // A dispatcher claims the attempt under a lease that has ended already, and is never heard of again.
    let claimed = harness
        .store
        .write(move |tx, now| claim_jobs(tx, now, Duration::ZERO, ClaimId::new(now), &[job]))
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    let running = harness.dispatch(settings());
    assert_eq!(harness.arrival().await.header("redial-attempt"), Some("2"));
    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.status_code, DeliveryStatus::Succeeded);
    let lost = &settled.attempts[0];
    assert_eq!((lost.attempt_number, lost.status_code), (1, None));
    assert!(lost.error_message.as_ref().unwrap().starts_with("outcome_unknown: "));
    running.stop().await;
}

async fn a_last_attempt_whose_dispatcher_died_fails_the_delivery(engine: Engine) {
    let mut harness = Harness::new(engine).await;
    harness.accept.max_attempts = 1;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let job = harness.job(delivery.id, 1);
    harness
        .store
        .write(move |tx, now| claim_jobs(tx, now, Duration::ZERO, ClaimId::new(now), &[job]))
        .await
        .unwrap();
    let running = harness.dispatch(settings());
    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.status_code, DeliveryStatus::Failed);
    assert_eq!(settled.failure_reason_code, Some(FailureReason::OutcomeUnknown));
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

async fn a_send_that_could_outlive_its_lease_is_not_begun(engine: Engine) {
    let harness = Harness::new(engine).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let stalled = dispatcher::Settings { lease: Duration::from_millis(400), ..settings() };
    let running = harness.dispatch(stalled);
    running.publisher.ring(harness.job(delivery.id, 1));
    let recorded = harness.delivery_when(delivery.id, |delivery| !delivery.attempts.is_empty()).await;
    assert!(recorded.attempts[0].error_message.as_ref().unwrap().starts_with("timeout: not sent: "));
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

/// As with a lock, a broken page, or a message in a language that nobody here reads.
#[tokio::test]
async fn a_result_that_the_database_refuses_for_a_while_is_kept_and_recorded() {
    let mut harness = Harness::new(Engine::Postgres).await;
    harness.database.execute(
        "CREATE SEQUENCE refusals;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'refusal no. %', nextval('refusals'); END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(delivery.id, 1));
    harness.arrival().await;
    let began = Instant::now();
    while harness.database.number("SELECT last_value FROM refusals") < 3 {
        assert!(began.elapsed() < PATIENCE, "it is not tried again");
        tokio::task::yield_now().await;
    }
    assert!(running.pulse.unrecorded_since().is_some());
    harness.database.execute("DROP TRIGGER refuse ON attempts");
    let settled = harness.settled(delivery.id).await;
    assert_eq!((settled.status_code, settled.attempts.len()), (DeliveryStatus::Succeeded, 1));
    let pulse = running.pulse.clone();
    running.stop().await;
    assert_eq!(pulse.unrecorded_since(), None);
    assert_eq!(harness.receiver.posts(), 1);
}

/// As with a person's `psql`.
#[tokio::test]
async fn a_lock_on_one_delivery_holds_up_the_results_of_no_other() {
    let mut harness = Harness::new(Engine::Postgres).await;
    let running = harness.dispatch(settings());
    let locked = harness.accept(&harness.receiver.url("/hang/1")).await;
    running.publisher.ring(harness.job(locked.id, 1));
    harness.arrival().await;
    let (org, run, store) = (harness.org, locked.run_id, harness.store.clone());
    let (release, released) = std::sync::mpsc::channel::<()>();
    let lock = tokio::spawn(async move {
        let locking = store.write(move |tx, now| {
            assert!(matches!(erase_run(tx, now, org, run)?, Erasure::BeingSent(_)));
            // Not idle, or the server would end it.
            while released.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                find_run(tx, org, run)?;
            }
            Ok::<_, StoreError>(())
        });
        locking.await
    });
    let began = Instant::now();
    while running.pulse.unrecorded_since().is_none() {
        assert!(began.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    let other = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(other.id, 1));
    assert_eq!(harness.settled(other.id).await.attempts.len(), 1);
    assert_eq!(harness.delivery(locked.id).await.status_code, DeliveryStatus::Delivering);
    release.send(()).unwrap();
    lock.await.unwrap().unwrap();
    let settled = harness.settled(locked.id).await;
    assert_eq!((settled.status_code, settled.attempts.len()), (DeliveryStatus::Succeeded, 1));
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 2);
}

async fn two_dispatchers_on_one_database_send_each_delivery_once(engine: Engine) {
    let mut harness = Harness::new(engine).await;
    let (one, other) = (harness.dispatch(settings()), harness.dispatch(settings()));
    let mut deliveries = Vec::new();
    for _ in 0..100 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        one.publisher.ring(harness.job(delivery.id, 1));
        other.publisher.ring(harness.job(delivery.id, 1));
        deliveries.push(delivery.id);
    }
    for id in deliveries {
        assert_eq!(harness.settled(id).await.attempts.len(), 1);
    }
    one.stop().await;
    other.stop().await;
    assert_eq!(harness.receiver.posts(), 100);
    while let Ok(received) = harness.arrivals.try_recv() {
        assert_eq!(received.verdict, receiver::Verdict::Valid);
    }
}

on_both_engines! {
    a_shutdown_finishes_what_is_in_flight_and_claims_nothing_more,
    a_shutdown_does_not_wait_for_a_receiver_longer_than_it_may,
    an_attempt_whose_dispatcher_died_becomes_outcome_unknown_and_is_tried_again,
    a_last_attempt_whose_dispatcher_died_fails_the_delivery,
    a_send_that_could_outlive_its_lease_is_not_begun,
    two_dispatchers_on_one_database_send_each_delivery_once,
}

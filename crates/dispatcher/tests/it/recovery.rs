//! Dispatchers that stop, die or stall.

use std::time::Duration;

use contracts::{ClaimId, DeliveryStatus, FailureReason};
use store::{AnyConnection, claim_jobs};
use testkit::Backend;
use tokio::time::Instant;

use crate::harness::{Harness, TIMEOUT, limited, settings};

async fn a_shutdown_finishes_attempts_in_flight_and_claims_no_more(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let slow = harness.accept(&harness.receiver.url("/hang/1")).await;
    running.publisher.ring(harness.job(&slow, 1));
    harness.arrival().await;
    running.shutdown.cancel();
    let never = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&never, 1));
    running.stop().await;
    assert_eq!(harness.delivery(slow.id).await.status_code, DeliveryStatus::Succeeded);
    let never = harness.delivery(never.id).await;
    assert_eq!((never.status_code, never.attempt_count), (DeliveryStatus::Pending, 0));
    assert_eq!(harness.receiver.posts(), 1);
}

async fn a_shutdown_waits_for_a_receiver_no_longer_than_drain(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(dispatcher::Settings { drain: Duration::from_millis(100), ..settings() });
    let hanging = harness.accept(&harness.receiver.url("/hang/60")).await;
    running.publisher.ring(harness.job(&hanging, 1));
    harness.arrival().await;
    running.stop().await;
    // Its outcome is decided when its lease expires.
    assert_eq!(harness.delivery(hanging.id).await.status_code, DeliveryStatus::Delivering);
}

async fn an_attempt_whose_dispatcher_died_becomes_outcome_unknown_and_is_tried_again(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let job = harness.job(&delivery, 1);
    // A dispatcher claims the attempt under a lease that has already expired, and dies.
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

async fn a_last_attempt_whose_dispatcher_died_fails_the_delivery(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    harness.accept.max_attempts = 1;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let job = harness.job(&delivery, 1);
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

async fn a_send_that_could_outlive_its_lease_is_handed_back_and_spends_no_attempt(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let running = harness.dispatch(limited(|limits| limits.lease = Duration::from_millis(400)));
    running.publisher.ring(harness.job(&delivery, 1));
    let handed_back = harness.handed_back(&delivery).await;
    assert_eq!((handed_back.status_code, handed_back.attempts.len()), (DeliveryStatus::Pending, 0));
    assert!(handed_back.next_attempt_at > Some(handed_back.updated_at), "it waits a little");
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

/// As with a deadlock, a full disk, a broken page or a lock, on a server with German messages.
#[tokio::test]
async fn a_result_that_the_database_refuses_for_a_while_is_kept_and_recorded() {
    let mut harness = Harness::new(Backend::Postgres).await;
    harness.database.execute(
        "CREATE SEQUENCE refusals;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'Abbruch' USING ERRCODE =
                 (ARRAY['55P03', '40P01', '53100', '57014', 'XX001'])[1 + nextval('refusals') % 5]; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    harness.arrival().await;
    let began = Instant::now();
    while harness.database.number("SELECT last_value FROM refusals") < 5 {
        assert!(began.elapsed() < TIMEOUT, "it is not tried again");
        tokio::task::yield_now().await;
    }
    assert!(running.progress.unrecorded_since().is_some());
    harness.database.execute("DROP TRIGGER refuse ON attempts");
    let settled = harness.settled(delivery.id).await;
    assert_eq!((settled.status_code, settled.attempts.len()), (DeliveryStatus::Succeeded, 1));
    let progress = running.progress.clone();
    running.stop().await;
    assert_eq!(progress.unrecorded_since(), None);
    assert_eq!(harness.receiver.posts(), 1);
}

/// As with an interactive `psql` session.
#[tokio::test]
async fn a_lock_on_one_delivery_holds_up_neither_results_nor_expired_leases_of_others() {
    let mut harness = Harness::new(Backend::Postgres).await;
    let locked = harness.accept(&harness.receiver.url("/hang/1")).await;
    let [expired, lost] = [
        harness.accept(&harness.receiver.url("/ok")).await,
        harness.accept(&harness.receiver.url("/ok")).await,
    ];
    let jobs = [harness.job(&expired, 1), harness.job(&lost, 1)];
    let claim =
        move |tx: &mut AnyConnection, now| claim_jobs(tx, now, Duration::ZERO, ClaimId::new(now), &jobs);
    harness.store.write(claim).await.unwrap();
    let lock =
        harness.database.lock(&format!("open_deliveries WHERE id IN ('{}', '{}')", locked.id, expired.id));

    let running = harness.dispatch(settings());
    // Its claim skips the locked row. It is claimed once the lock is released.
    running.publisher.ring(harness.job(&locked, 1));
    assert_eq!(harness.settled(lost.id).await.attempts.len(), 2);
    let other = harness.accept(&harness.receiver.url("/hang/1")).await;
    running.publisher.ring(harness.job(&other, 1));
    while harness.arrival().await.header("webhook-id") != Some(other.id.to_string().as_str()) {}
    let second = harness.database.lock(&format!("open_deliveries WHERE id = '{}'", other.id));
    let began = Instant::now();
    while running.progress.unrecorded_since().is_none() {
        assert!(began.elapsed() < TIMEOUT);
        tokio::task::yield_now().await;
    }
    let quick = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&quick, 1));
    assert_eq!(harness.settled(quick.id).await.attempts.len(), 1);
    assert_eq!(harness.delivery(other.id).await.status_code, DeliveryStatus::Delivering);
    assert_eq!(harness.delivery(expired.id).await.attempts.len(), 0);
    drop((lock, second));
    for (id, attempts) in [(other.id, 1), (expired.id, 2), (locked.id, 1)] {
        let settled = harness.settled(id).await;
        assert_eq!((settled.status_code, settled.attempts.len()), (DeliveryStatus::Succeeded, attempts));
    }
    running.stop().await;
}

/// As with a constraint added by an operator, or an unreadable page.
#[tokio::test]
async fn a_delivery_that_the_database_refuses_to_claim_is_skipped_and_the_others_are_served() {
    let harness = Harness::new(Backend::Postgres).await;
    let mut deliveries = Vec::new();
    for _ in 0..40 {
        deliveries.push(harness.accept(&harness.receiver.url("/ok")).await);
    }
    let refused = deliveries.remove(7);
    harness.database.execute(&format!(
        "CREATE SEQUENCE refusals;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'refusal no. %', nextval('refusals'); END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON open_deliveries FOR EACH ROW WHEN (OLD.id = '{}')
             EXECUTE FUNCTION refuse();
         UPDATE open_deliveries SET wake_at = created_at WHERE id <> '{}'",
        refused.id, refused.id
    ));
    let running = harness.dispatch(settings());
    for delivery in &deliveries {
        assert_eq!(harness.settled(delivery.id).await.attempts.len(), 1);
    }
    let began = Instant::now();
    while harness.database.number("SELECT last_value FROM refusals") < 2 {
        assert!(began.elapsed() < TIMEOUT, "it is not tried again");
        tokio::task::yield_now().await;
    }
    harness.database.execute("DROP TRIGGER refuse ON open_deliveries");
    assert_eq!(harness.settled(refused.id).await.status_code, DeliveryStatus::Succeeded);
    running.stop().await;
}

async fn two_dispatchers_on_one_database_send_each_delivery_once(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let (one, other) = (harness.dispatch(settings()), harness.dispatch(settings()));
    let mut deliveries = Vec::new();
    for _ in 0..100 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        one.publisher.ring(harness.job(&delivery, 1));
        other.publisher.ring(harness.job(&delivery, 1));
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

testkit::on_both_backends! {
    a_shutdown_finishes_attempts_in_flight_and_claims_no_more,
    a_shutdown_waits_for_a_receiver_no_longer_than_drain,
    an_attempt_whose_dispatcher_died_becomes_outcome_unknown_and_is_tried_again,
    a_last_attempt_whose_dispatcher_died_fails_the_delivery,
    a_send_that_could_outlive_its_lease_is_handed_back_and_spends_no_attempt,
    two_dispatchers_on_one_database_send_each_delivery_once,
}

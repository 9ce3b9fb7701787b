//! Retries after a failed attempt (contract section 2, "Success is …").

use contracts::{DeliveryStatus, FailureReason};
use testkit::Backend;

use crate::harness::{Harness, limited, settings};

async fn a_receiver_that_fails_twice_gets_three_attempts_at_the_configured_waits(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/fail-first/2")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    for attempt in ["1", "2", "3"] {
        let received = harness.arrival().await;
        assert_eq!(received.header("redial-attempt"), Some(attempt));
        assert_eq!(received.body, delivery.payload_bytes.as_bytes());
        assert_eq!(received.header("webhook-id"), Some(delivery.id.to_string().as_str()));
    }
    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.status_code, DeliveryStatus::Succeeded);
    assert_eq!(settled.failure_reason_code, None);
    let statuses: Vec<_> = settled.attempts.iter().map(|attempt| attempt.status_code).collect();
    assert_eq!(statuses, [Some(503), Some(503), Some(200)]);
    let schedule = settings().limits.retry.schedule;
    let waits = settled.attempts.windows(2).zip(&schedule);
    for (pair, planned) in waits {
        let waited = pair[1].created_at.since(pair[0].created_at).as_secs_f64();
        let planned = planned.as_secs_f64();
        assert!((0.9 * planned..=1.1 * planned + 1.0).contains(&waited), "{waited} s instead of {planned} s");
    }
    running.stop().await;
}

async fn a_receiver_that_always_fails_ends_the_delivery_after_max_attempts(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/status/500")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.status_code, DeliveryStatus::Failed);
    assert_eq!(settled.failure_reason_code, Some(FailureReason::HttpError));
    assert_eq!((settled.attempt_count, settled.next_attempt_at), (3, None));
    let numbers: Vec<_> = settled.attempts.iter().map(|attempt| attempt.attempt_number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for attempt in &settled.attempts {
        assert_eq!(attempt.status_code, Some(500));
        let message = "http_error: the receiver answered 500 Internal Server Error";
        assert_eq!(attempt.error_message.as_deref(), Some(message));
        assert_eq!(attempt.response_body.as_deref(), Some("500 Internal Server Error (scripted)\n"));
        assert!(attempt.response_time_ms.is_some());
    }
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 3);
}

async fn a_waiting_delivery_shows_when_it_is_tried_next(backend: Backend) {
    let harness = Harness::new(backend).await;
    let patient = limited(|limits| limits.retry.schedule = vec![std::time::Duration::from_secs(600)]);
    let running = harness.dispatch(patient);
    let waiting = harness.after_first_attempt(&running, &harness.receiver.url("/status/503")).await;
    assert_eq!(waiting.status_code, DeliveryStatus::Pending);
    let wait = waiting.next_attempt_at.unwrap().since(waiting.attempts[0].created_at).as_secs();
    assert!((540..=662).contains(&wait), "{wait}");
    running.stop().await;
}

async fn a_retry_after_header_lengthens_the_wait(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let waiting = harness.after_first_attempt(&running, &harness.receiver.url("/retry-after/900")).await;
    let wait = waiting.next_attempt_at.unwrap().since(waiting.attempts[0].created_at).as_secs();
    assert!((900..=902).contains(&wait), "{wait}");
    running.stop().await;
}

async fn a_410_ends_the_delivery_only_where_that_is_set(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let retried = harness.after_first_attempt(&running, &harness.receiver.url("/gone")).await;
    assert_eq!(retried.status_code, DeliveryStatus::Pending);
    running.stop().await;

    let running = harness.dispatch(limited(|limits| limits.retry.stop_on_gone = true));
    let ended = harness.after_first_attempt(&running, &harness.receiver.url("/gone")).await;
    assert_eq!(ended.status_code, DeliveryStatus::Failed);
    assert_eq!(ended.failure_reason_code, Some(FailureReason::Gone));
    running.stop().await;
}

testkit::on_both_backends! {
    a_receiver_that_fails_twice_gets_three_attempts_at_the_configured_waits,
    a_receiver_that_always_fails_ends_the_delivery_after_max_attempts,
    a_waiting_delivery_shows_when_it_is_tried_next,
    a_retry_after_header_lengthens_the_wait,
    a_410_ends_the_delivery_only_where_that_is_set,
}

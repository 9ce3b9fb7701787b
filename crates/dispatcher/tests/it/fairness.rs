//! A destination never costs another one its attempts.

use std::time::Duration;

use contracts::{Delivery, DeliveryStatus};
use testkit::Backend;

use crate::harness::{Harness, limited, settings};

/// Returns a URL of the receiver under another name, which is another destination.
fn elsewhere(harness: &Harness, path: &str) -> String {
    harness.receiver.url(path).replace("127.0.0.1", "localhost")
}

async fn a_destination_that_hangs_holds_few_slots_and_the_others_are_served(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(dispatcher::Settings {
        drain: Duration::ZERO,
        ..limited(|limits| (limits.max_in_flight, limits.max_in_flight_per_destination) = (8, 6))
    });
    let hanging = elsewhere(&harness, "/hang/60");
    for _ in 0..20 {
        let delivery = harness.accept(&hanging).await;
        running.publisher.ring(harness.job(&delivery, 1));
    }
    for _ in 0..20 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        running.publisher.ring(harness.job(&delivery, 1));
        assert_eq!(harness.settled(delivery.id).await.attempts.len(), 1);
    }
    let mut hung = 0;
    while let Ok(received) = harness.arrivals.try_recv() {
        hung += usize::from(received.path.starts_with("/hang"));
    }
    assert!((1..=4).contains(&hung), "{hung}");
    running.stop().await;
}

async fn deliveries_of_a_full_destination_are_sent_as_soon_as_it_has_room(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(limited(|limits| limits.max_in_flight_per_destination = 1));
    let mut deliveries = Vec::new();
    for _ in 0..30 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        running.publisher.ring(harness.job(&delivery, 1));
        deliveries.push(delivery);
    }
    for delivery in deliveries {
        let settled = harness.settled(delivery.id).await;
        let waited = settled.attempts[0].created_at.since(settled.created_at);
        assert!(waited < Duration::from_secs(2), "waited for the doorbell's grace period: {waited:?}");
    }
    running.stop().await;
}

async fn a_retry_after_holds_the_whole_destination_and_spends_no_attempts(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let first = harness.after_first_attempt(&running, &harness.receiver.url("/retry-after/800")).await;
    let other = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&other, 1));
    let apart = harness.accept(&elsewhere(&harness, "/ok")).await;
    running.publisher.ring(harness.job(&apart, 1));
    harness.settled(apart.id).await;
    let waiting = harness.delivery(other.id).await;
    assert_eq!((waiting.status_code, waiting.attempt_count), (DeliveryStatus::Pending, 0));
    let shown = waiting.next_attempt_at.unwrap().since(first.attempts[0].created_at).as_secs();
    assert!((800..=802).contains(&shown), "{shown}");
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 2);
}

async fn one_attempt_is_sent_first_when_a_hold_ends_and_opens_the_destination(backend: Backend) {
    let harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let first = harness.after_first_attempt(&running, &harness.receiver.url("/retry-after/1")).await;
    let held_until = first.next_attempt_at.unwrap();
    let mut others = Vec::new();
    for _ in 0..10 {
        others.push(harness.accept(&harness.receiver.url("/ok")).await);
    }
    let mut attempts = Vec::new();
    for delivery in &others {
        let settled: Delivery = harness.settled(delivery.id).await;
        attempts.push(settled.attempts[0].clone());
    }
    attempts.sort_by_key(|attempt| attempt.created_at);
    assert!(attempts[0].created_at >= held_until || harness.settled(first.id).await.attempts.len() == 2);
    assert!(attempts.iter().all(|attempt| attempt.created_at >= held_until));
    assert_eq!(harness.settled(first.id).await.attempts.len(), 2);
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 12);
}

testkit::on_both_backends! {
    a_destination_that_hangs_holds_few_slots_and_the_others_are_served,
    deliveries_of_a_full_destination_are_sent_as_soon_as_it_has_room,
    a_retry_after_holds_the_whole_destination_and_spends_no_attempts,
    one_attempt_is_sent_first_when_a_hold_ends_and_opens_the_destination,
}

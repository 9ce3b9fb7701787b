//! The request that a receiver gets (contract section 2).

use contracts::{DeliveryStatus, SecretId, SigningSecret, sign};
use receiver::Verdict;
use testkit::Backend;

use crate::harness::{Harness, settings};

async fn the_request_has_the_contracts_headers_and_the_frozen_bytes(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok?token=x")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    let received = harness.arrival().await;

    assert_eq!(received.path, "/ok?token=x");
    assert_eq!(received.body, delivery.payload_bytes.as_bytes());
    assert_eq!(received.verdict, Verdict::Valid);
    let header = |name| received.header(name).unwrap_or_else(|| panic!("{name} is sent"));
    let id = delivery.id.to_string();
    let timestamp = header("webhook-timestamp").parse().unwrap();
    let signed = sign(&harness.secret, &id, timestamp, &received.body);
    assert_eq!(header("runflow-signature"), signed.runflow_signature);
    assert_eq!(header("webhook-signature"), signed.webhook_signature);
    assert_eq!(header("webhook-id"), id);
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("user-agent"), concat!("Redial/", env!("CARGO_PKG_VERSION")));
    assert_eq!(header("redial-attempt"), "1");
    assert!(header("runflow-request-id").parse::<uuid::Uuid>().is_ok());

    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.status_code, DeliveryStatus::Succeeded);
    assert_eq!(
        (settled.attempt_count, settled.next_attempt_at, settled.failure_reason_code),
        (1, None, None)
    );
    let attempt = &settled.attempts[0];
    assert_eq!((attempt.attempt_number, attempt.status_code, &attempt.error_message), (1, Some(200), &None));
    assert!(attempt.response_time_ms.is_some() && attempt.response_body.is_some());
    let used_at = harness.secret_used_at(delivery.signing_secret_id.unwrap()).await;
    assert!(used_at >= delivery.created_at);
    running.stop().await;
    assert!(harness.arrivals.try_recv().is_err(), "nothing more is sent");
}

async fn a_delivery_without_a_secret_is_sent_without_signatures(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let elsewhere = harness
        .store
        .write(|tx, now| Ok::<_, store::StoreError>(store::create_organization(tx, now, "no secret")?.id))
        .await
        .unwrap();
    harness.org = elsewhere;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    let received = harness.arrival().await;
    assert_eq!(received.verdict, Verdict::Unsigned);
    assert_eq!(received.header("runflow-signature"), None);
    assert_eq!(received.header("webhook-signature"), None);
    assert!(received.header("webhook-id").is_some());
    running.stop().await;
}

/// Creates another secret for the organization and disables `old`, which makes the new one current.
async fn rotate(harness: &Harness, old: Option<SecretId>) -> SigningSecret {
    let (org, keyring) = (harness.org, harness.keyring.clone());
    let rotated = harness.store.write(move |tx, now| {
        let made = store::create_secret(tx, now, &keyring, org, None)?;
        if let Some(old) = old {
            assert!(store::disable_secret(tx, now, org, old)?);
        }
        Ok::<_, store::StoreError>(made.plain_secret)
    });
    rotated.await.unwrap()
}

async fn a_delivery_is_signed_with_the_current_secret_once_its_own_is_disabled(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let current = rotate(&harness, delivery.signing_secret_id).await;
    let running = harness.dispatch(settings());
    let received = harness.arrival().await;
    let timestamp = received.header("webhook-timestamp").unwrap().parse().unwrap();
    let signed = sign(&current, &delivery.id.to_string(), timestamp, &received.body);
    assert_eq!(received.header("runflow-signature"), Some(signed.runflow_signature.as_str()));
    assert_eq!(received.header("webhook-signature"), Some(signed.webhook_signature.as_str()));
    let settled = harness.settled(delivery.id).await;
    assert_eq!(settled.signing_secret_id, delivery.signing_secret_id, "what it was frozen with");
    running.stop().await;
}

async fn a_delivery_accepted_before_there_was_a_secret_is_signed_with_the_current_one(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let elsewhere =
        harness.store.write(|tx, now| store::create_organization(tx, now, "no secret")).await.unwrap();
    harness.org = elsewhere.id;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    assert_eq!(delivery.signing_secret_id, None);
    harness.receiver.add_secret(rotate(&harness, None).await);
    let running = harness.dispatch(settings());
    assert_eq!(harness.arrival().await.verdict, Verdict::Valid);
    running.stop().await;
}

async fn a_delivery_whose_organization_disabled_its_last_secret_is_sent_without_signatures(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    let (org, secret) = (harness.org, delivery.signing_secret_id.unwrap());
    assert!(harness.store.write(move |tx, now| store::disable_secret(tx, now, org, secret)).await.unwrap());
    let running = harness.dispatch(settings());
    assert_eq!(harness.arrival().await.verdict, Verdict::Unsigned);
    running.stop().await;
}

async fn a_repeated_doorbell_sends_nothing_twice(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    for _ in 0..5 {
        running.publisher.ring(harness.job(&delivery, 1));
    }
    harness.arrival().await;
    harness.settled(delivery.id).await;
    running.publisher.ring(harness.job(&delivery, 1));
    running.publisher.ring(harness.job(&delivery, 2));
    // Doorbells are served in order: once a later one is served, the earlier ones are, too.
    let last = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&last, 1));
    assert_eq!(harness.arrival().await.header("webhook-id"), Some(last.id.to_string().as_str()));
    running.stop().await;
    assert!(harness.arrivals.try_recv().is_err(), "nothing more is sent");
}

async fn a_delivery_without_a_doorbell_is_served_by_the_relay(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    assert_eq!(harness.arrival().await.verdict, Verdict::Valid);
    let settled = harness.settled(delivery.id).await;
    let waited = settled.attempts[0].created_at.since(delivery.created_at);
    assert!(waited.as_secs() >= 2, "left to its doorbell for two seconds, but claimed after {waited:?}");
    running.stop().await;
}

async fn many_deliveries_are_each_sent_once(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let running = harness.dispatch(settings());
    let mut deliveries = Vec::new();
    for _ in 0..200 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        running.publisher.ring(harness.job(&delivery, 1));
        deliveries.push(delivery.id);
    }
    let mut arrived: Vec<contracts::DeliveryId> = Vec::new();
    while arrived.len() < deliveries.len() {
        arrived.push(harness.arrival().await.header("webhook-id").unwrap().parse().unwrap());
    }
    arrived.sort_unstable();
    deliveries.sort_unstable();
    assert_eq!(arrived, deliveries);
    running.stop().await;
    for id in deliveries {
        assert_eq!(harness.delivery(id).await.status_code, DeliveryStatus::Succeeded);
    }
}

testkit::on_both_backends! {
    the_request_has_the_contracts_headers_and_the_frozen_bytes,
    a_delivery_without_a_secret_is_sent_without_signatures,
    a_delivery_is_signed_with_the_current_secret_once_its_own_is_disabled,
    a_delivery_accepted_before_there_was_a_secret_is_signed_with_the_current_one,
    a_delivery_whose_organization_disabled_its_last_secret_is_sent_without_signatures,
    a_repeated_doorbell_sends_nothing_twice,
    a_delivery_without_a_doorbell_is_served_by_the_relay,
    many_deliveries_are_each_sent_once,
}

//! Receivers that are down, slow, hostile or broken, and addresses that are never called.

use std::time::Duration;

use contracts::{Delivery, DeliveryStatus, FailureReason};
use dispatcher::LocalFailure;
use egress::Rules;
use store::Keyring;
use testkit::Backend;

use crate::harness::{Harness, limited, settings};

/// Makes one attempt with a short timeout and returns the delivery on record.
async fn attempted(harness: &Harness, url: &str) -> Delivery {
    let hasty = limited(|limits| limits.timeout = Duration::from_millis(500));
    let running = harness.dispatch(hasty);
    let delivery = harness.after_first_attempt(&running, url).await;
    running.stop().await;
    delivery
}

fn assert_failed(delivery: &Delivery, reason: FailureReason, sentence: &str) {
    assert_eq!(delivery.failure_reason_code, Some(reason), "{delivery:#?}");
    let detail = delivery.failure_detail.as_deref().unwrap();
    assert!(detail.contains(sentence), "{detail}");
    let message = delivery.attempts[0].error_message.as_deref();
    assert_eq!(message, Some(format!("{reason}: {detail}").as_str()));
}

async fn a_redirect_is_a_failure_and_is_not_followed(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, &harness.receiver.url("/redirect")).await;
    assert_failed(&delivery, FailureReason::HttpError, "302");
    assert_eq!(harness.receiver.posts(), 1);
}

async fn a_receiver_that_hangs_times_out(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, &harness.receiver.url("/hang/60")).await;
    assert_failed(&delivery, FailureReason::Timeout, "no complete response within 0.5 s");
    assert_eq!(delivery.attempts[0].status_code, None);
    assert_eq!(delivery.attempts[0].response_body, None);
}

async fn a_2xx_head_is_success_even_when_its_body_never_ends(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, &harness.receiver.url("/drip/60")).await;
    assert_eq!(delivery.status_code, DeliveryStatus::Succeeded);
    let time = delivery.attempts[0].response_time_ms.unwrap();
    assert!(time < 5_000, "the budget includes the body, but it took {time} ms");
}

async fn only_8_kib_of_a_large_body_are_kept(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, &harness.receiver.url("/large/10000000")).await;
    assert_eq!(delivery.status_code, DeliveryStatus::Succeeded);
    assert_eq!(delivery.attempts[0].response_body.as_ref().unwrap().len(), 8 * 1024);
}

async fn a_connection_cut_without_an_answer_is_a_connection_error(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, &harness.receiver.url("/reset")).await;
    assert_failed(&delivery, FailureReason::ConnectionError, "before a complete response");
    assert_eq!(harness.receiver.posts(), 1, "nothing is sent again on its own");
}

async fn a_closed_port_is_a_connection_error(backend: Backend) {
    let harness = Harness::new(backend).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let delivery = attempted(&harness, &format!("http://{closed}/callbacks?token=hush")).await;
    assert_failed(&delivery, FailureReason::ConnectionError, "no connection to http://127.0.0.1");
    assert!(!delivery.failure_detail.unwrap().contains("hush"), "a URL's query may hold secrets");
}

async fn a_name_that_does_not_exist_is_a_dns_error(backend: Backend) {
    let harness = Harness::new(backend).await;
    let delivery = attempted(&harness, "http://no-such-host.invalid/").await;
    assert_failed(&delivery, FailureReason::DnsError, "no-such-host.invalid");
}

async fn a_receiver_that_does_not_speak_tls_is_a_tls_error(backend: Backend) {
    let harness = Harness::new(backend).await;
    let url = harness.receiver.url("/ok").replace("http:", "https:");
    let delivery = attempted(&harness, &url).await;
    assert_failed(&delivery, FailureReason::TlsError, "no TLS session");
    assert_eq!(harness.receiver.posts(), 0);
}

async fn internal_addresses_are_never_called_however_they_are_written(backend: Backend) {
    let harness = Harness::new(backend).await;
    let port = harness.receiver.addr().port();
    let running = harness.dispatch_under(settings(), egress::Policy::default());
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254"] {
        let delivery = harness.after_first_attempt(&running, &format!("http://{host}:{port}/ok")).await;
        assert_failed(&delivery, FailureReason::BlockedAddress, "refused");
        assert_eq!(delivery.status_code, DeliveryStatus::Pending, "retried like any failure");
    }
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

/// Runs may have been recorded under other settings, with URLs in spellings that are no longer accepted.
async fn settings_hold_for_runs_recorded_before_them(backend: Backend) {
    let harness = Harness::new(backend).await;
    let open = || Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Rules::default() };
    let url = harness.receiver.url("/ok");
    for (rules, sentence) in [
        (Rules { deny: open().allow, ..open() }, "denied"),
        (Rules { ports: vec!["443".parse().unwrap()], ..open() }, "port"),
        (Rules { https_only: true, ..open() }, "only https"),
    ] {
        let running = harness.dispatch_under(settings(), rules.into());
        let delivery = harness.after_first_attempt(&running, &url).await;
        assert_failed(&delivery, FailureReason::BlockedAddress, sentence);
        running.stop().await;
    }
    assert_eq!(harness.receiver.posts(), 0);
    let delivery = attempted(&harness, &url.replace("http://", "HTTP:")).await;
    assert_eq!(delivery.status_code, DeliveryStatus::Succeeded);
}

async fn a_name_that_resolves_to_an_internal_address_is_not_called(backend: Backend) {
    let harness = Harness::new(backend).await;
    // This machine's host name, which no policy lists. Its address is loopback or private.
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let running = harness.dispatch_under(settings(), egress::Policy::default());
    let url = format!("http://{}:{}/ok", name.trim().to_lowercase(), harness.receiver.addr().port());
    let delivery = harness.after_first_attempt(&running, &url).await;
    assert_failed(&delivery, FailureReason::DnsError, "does not resolve to an address that may be called");
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

async fn a_secret_that_cannot_be_opened_fails_the_attempt_and_nothing_is_sent(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    harness.keyring = testkit::keyring();
    let running = harness.dispatch(settings());
    let delivery = harness.after_first_attempt(&running, &harness.receiver.url("/ok")).await;
    assert_failed(&delivery, FailureReason::SigningUnavailable, "could not be opened");
    assert_eq!(delivery.status_code, DeliveryStatus::Pending);
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);
}

async fn a_secret_sealed_with_a_missing_key_spends_no_attempt(backend: Backend) {
    let mut harness = Harness::new(backend).await;
    let another = Keyring::parse(&[Keyring::generate("another").as_str()]).unwrap();
    let complete = std::mem::replace(&mut harness.keyring, another);
    let running = harness.dispatch(settings());
    let delivery = harness.accept(&harness.receiver.url("/ok")).await;
    running.publisher.ring(harness.job(&delivery, 1));
    let handed_back = harness.handed_back(&delivery).await;
    assert_eq!((handed_back.status_code, handed_back.attempts.len()), (DeliveryStatus::Pending, 0));
    assert_eq!(running.progress.troubles(), [LocalFailure::KeyMissing]);
    running.stop().await;
    assert_eq!(harness.receiver.posts(), 0);

    harness.keyring = complete;
    harness.database.execute("UPDATE open_deliveries SET next_attempt_at = created_at, wake_at = created_at");
    let running = harness.dispatch(settings());
    let settled = harness.settled(delivery.id).await;
    assert_eq!((settled.status_code, settled.attempt_count), (DeliveryStatus::Succeeded, 1));
    running.stop().await;
}

testkit::on_both_backends! {
    a_redirect_is_a_failure_and_is_not_followed,
    a_receiver_that_hangs_times_out,
    a_2xx_head_is_success_even_when_its_body_never_ends,
    only_8_kib_of_a_large_body_are_kept,
    a_connection_cut_without_an_answer_is_a_connection_error,
    a_closed_port_is_a_connection_error,
    a_name_that_does_not_exist_is_a_dns_error,
    a_receiver_that_does_not_speak_tls_is_a_tls_error,
    internal_addresses_are_never_called_however_they_are_written,
    settings_hold_for_runs_recorded_before_them,
    a_name_that_resolves_to_an_internal_address_is_not_called,
    a_secret_that_cannot_be_opened_fails_the_attempt_and_nothing_is_sent,
    a_secret_sealed_with_a_missing_key_spends_no_attempt,
}

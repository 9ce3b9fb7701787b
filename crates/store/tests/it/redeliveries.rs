//! Redeliveries: the guards, and the fixed properties of a delivery.

use std::time::Duration;

use ::store::{AcceptPolicy, DeliveryParts, Redelivery, find_delivery, redeliver};
use contracts::{DeliveryStatus, InFlight, PayloadFormat, RunStatus};
use testkit::{Backend, terminal_run};

use crate::stage::{POLICY, Stage, URL, accepted, at_once, failed, new_run, retried, succeeded, update};

testkit::on_both_backends!(
    a_run_that_is_unknown_or_another_organizations_is_not_found,
    a_run_that_has_not_ended_is_refused,
    a_run_without_a_url_is_refused,
    a_run_whose_delivery_is_open_is_refused_with_that_delivery,
    a_finished_delivery_allows_another_one,
    a_new_delivery_has_no_attempts_and_no_failure,
    the_payload_is_fixed_from_the_runs_current_state,
    the_current_policy_is_fixed_on_the_delivery,
    a_runs_deliveries_are_listed_newest_first_with_their_attempts,
    of_concurrent_redeliveries_exactly_one_is_accepted,
);

async fn a_run_that_is_unknown_or_another_organizations_is_not_found(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    assert_eq!(stage.redeliver(new_run()), Redelivery::RunNotFound);
    let delivery = accepted(stage.redeliver(run)).id;
    stage.org = stage.other_org();
    assert_eq!(stage.redeliver(run), Redelivery::RunNotFound);
    assert_eq!(testkit::deliveries_of_run(&mut stage.conn, stage.org, run).unwrap(), None);
    assert_eq!(find_delivery(&mut stage.conn, stage.org, delivery, DeliveryParts::ALL).unwrap(), None);
}

async fn a_run_that_has_not_ended_is_refused(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    for status in [RunStatus::Queued, RunStatus::Dispatching, RunStatus::Running] {
        stage.record(run, &update(&format!(r#"{{"status_code": "{status}", "callback_url": "{URL}"}}"#)));
        assert_eq!(stage.redeliver(run), Redelivery::RunNotTerminal(status));
    }
}

async fn a_run_without_a_url_is_refused(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    stage.record(run, &update(r#"{"status_code": "failed"}"#));
    assert_eq!(stage.redeliver(run), Redelivery::CallbackUrlMissing);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 0);
}

async fn a_run_whose_delivery_is_open_is_refused_with_that_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    stage.record(run, &terminal_run(URL));
    let automatic = testkit::deliveries_of_run(&mut stage.conn, stage.org, run).unwrap().unwrap().remove(0);
    let in_flight =
        |next_attempt_at| Redelivery::InFlight(InFlight { delivery_id: automatic.id, next_attempt_at });
    // New, in flight, and waiting for a retry.
    assert_eq!(stage.redeliver(run), in_flight(Some(stage.now)));
    let claimed = stage.claim_one(automatic.id, 1);
    assert_eq!(stage.redeliver(run), in_flight(None));
    let retry_at = stage.now + Duration::from_micros(10_000_001);
    stage.finish_one(retried(&claimed, retry_at));
    assert_eq!(stage.redeliver(run), in_flight(Some(retry_at)));
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 1);
}

async fn a_finished_delivery_allows_another_one(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    for finish in [succeeded, failed] {
        let delivery = accepted(stage.redeliver(run));
        let claimed = stage.claim_one(delivery.id, 1);
        stage.finish_one(finish(&claimed));
    }
    assert!(!accepted(stage.redeliver(run)).is_automatic);
}

async fn a_new_delivery_has_no_attempts_and_no_failure(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    assert_eq!((delivery.status_code, delivery.attempt_count), (DeliveryStatus::Pending, 0));
    assert_eq!((delivery.failure_reason_code, delivery.failure_detail.as_deref()), (None, None));
    assert!(delivery.attempts.is_empty());
    assert_eq!(delivery, stage.delivery(delivery.id));
    let claimed = stage.claim(&[stage.job(delivery.id, 1)]);
    assert_eq!(claimed[0].held.request.request_id, "req-redelivery");
}

async fn the_payload_is_fixed_from_the_runs_current_state(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let first = accepted(stage.redeliver(run));
    assert!(first.payload_bytes.contains(r#""output": {"images": ["https://cdn.example.com/1.png"]}"#));
    assert!(first.payload_bytes.contains(r#""created_at": "2023-11-07T05:31:56+00:00""#));

    let refreshed =
        update(r#"{"status_code": "succeeded", "output": {"images": ["https://cdn.example.com/2.png"]}}"#);
    stage.record(run, &refreshed);
    assert_eq!(stage.delivery(first.id).payload_bytes, first.payload_bytes);
    let claimed = stage.claim_one(first.id, 1);
    assert_eq!(claimed.payload, first.payload_bytes.as_bytes());
    stage.finish_one(failed(&claimed));

    let second = accepted(stage.redeliver(run));
    assert_eq!(second.payload_bytes, first.payload_bytes.replace("/1.png", "/2.png"));
    assert_eq!(stage.delivery(first.id).payload_bytes, first.payload_bytes);
}

async fn the_current_policy_is_fixed_on_the_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let compact = AcceptPolicy { max_attempts: 1, payload_format: PayloadFormat::Compact };
    let delivery =
        accepted(redeliver(&mut stage.conn, stage.now, &compact, stage.org, run, "req".into()).unwrap());
    assert!(delivery.payload_bytes.starts_with(r#"{"event":"run.completed","run_id":""#));
    let claimed = stage.claim_one(delivery.id, 1);
    assert_eq!((claimed.held.attempt, claimed.held.max_attempts), (1, 1));
}

async fn a_runs_deliveries_are_listed_newest_first_with_their_attempts(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let mut made = Vec::new();
    for _ in 0..3 {
        let delivery = accepted(stage.redeliver(run)).id;
        let first = stage.claim_one(delivery, 1);
        stage.finish_one(retried(&first, stage.now));
        let second = stage.claim_one(delivery, 2);
        stage.finish_one(failed(&second));
        made.insert(0, stage.delivery(delivery));
        stage.advance(Duration::from_micros(1));
    }
    assert!(made.iter().all(|delivery| delivery.attempts.len() == 2));
    assert_eq!(testkit::deliveries_of_run(&mut stage.conn, stage.org, run).unwrap(), Some(made));
}

async fn of_concurrent_redeliveries_exactly_one_is_accepted(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (org, run) = (stage.org, stage.run());
    let answers =
        at_once(&stage.store().await, 32, move |tx, now| redeliver(tx, now, &POLICY, org, run, "req".into()))
            .await;
    let (accepted, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| matches!(answer, Redelivery::Accepted(_)));
    assert_eq!(accepted.len(), 1);
    let Redelivery::Accepted(accepted) = &accepted[0] else { unreachable!() };
    let in_flight = InFlight { delivery_id: accepted.delivery.id, next_attempt_at: Some(stage.now) };
    assert!(refused.iter().all(|answer| *answer == Redelivery::InFlight(in_flight.clone())), "{refused:?}");
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 1);
}

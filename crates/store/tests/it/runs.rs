//! Recording runs, and the one automatic delivery of each run.

use std::time::Duration;

use ::store::{Accepted, Deliver, RecordedRun, find_run, record_run};
use contracts::{DeliveryStatus, RunStatus};
use testkit::{Backend, terminal_run};

use crate::stage::{POLICY, Stage, URL, accepted, at_once, new_run, update};

testkit::on_both_backends!(
    an_unknown_run_is_created,
    an_open_run_is_replaced_and_keeps_its_created_at_unless_the_update_has_one,
    a_terminal_run_keeps_its_status,
    only_the_output_of_a_terminal_run_is_updated,
    the_same_id_in_two_organizations_is_two_runs,
    the_first_terminal_record_makes_exactly_one_automatic_delivery,
    every_terminal_status_makes_a_delivery_and_no_other_does,
    a_run_without_a_url_and_an_imported_run_make_no_delivery,
    a_recorded_run_whose_host_exceeds_the_maximum_length_can_be_delivered,
    concurrent_puts_that_create_a_terminal_run_make_one_delivery,
    concurrent_puts_that_end_an_open_run_make_one_delivery,
    concurrent_puts_that_end_a_run_differently_agree_on_one_status,
);

fn updated(recorded: RecordedRun) -> Option<Accepted> {
    match recorded {
        RecordedRun::Updated(_, accepted) => accepted,
        other => panic!("updated, not {other:?}"),
    }
}

async fn an_unknown_run_is_created(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    assert_eq!(find_run(&mut stage.conn, stage.org, run).unwrap(), None);
    let body = r#"{"status_code": "running", "duration_ms": 9223372036854775807, "started_at": "2026-01-01T00:00:00Z",
        "failure_code": "c", "failure_message": "é", "failure_stage_code": ""}"#;
    let recorded = stage.record(run, &update(body));
    let RecordedRun::Created(created, None) = recorded else { panic!("created, not {recorded:?}") };
    assert_eq!(created, stage.stored_run(run));
    assert_eq!(created, update(body).into_run(stage.org, run, stage.now));
}

async fn an_open_run_is_replaced_and_keeps_its_created_at_unless_the_update_has_one(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (run, created_at) = (new_run(), stage.now);
    stage.record(
        run,
        &update(r#"{"status_code": "queued", "metadata": {"a": 1}, "callback_url": "https://a.example"}"#),
    );
    stage.advance(Duration::from_secs(5));
    // An earlier status is accepted; omitted fields are cleared.
    for status in ["running", "dispatching", "queued"] {
        let recorded =
            stage.record(run, &update(&format!(r#"{{"status_code": "{status}", "output": [1]}}"#)));
        let RecordedRun::Updated(shown, None) = recorded else { panic!("updated, not {recorded:?}") };
        assert_eq!(shown, stage.stored_run(run));
        assert_eq!(shown.status_code.to_string(), status);
        assert_eq!((shown.created_at, shown.updated_at), (created_at, stage.now));
        assert_eq!((shown.metadata, shown.callback_url), (None, None));
    }
    stage.record(run, &update(r#"{"status_code": "queued", "created_at": "2020-02-02T02:02:02Z"}"#));
    assert_eq!(stage.stored_run(run).created_at.to_string(), "2020-02-02T02:02:02Z");
}

async fn a_terminal_run_keeps_its_status(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let before = stage.stored_run(run);
    stage.advance(Duration::from_secs(1));
    for status in ["queued", "running", "failed", "canceled", "partial_succeeded"] {
        let recorded = stage.record(run, &update(&format!(r#"{{"status_code": "{status}"}}"#)));
        assert!(matches!(recorded, RecordedRun::StatusConflict(RunStatus::Succeeded)), "{recorded:?}");
    }
    assert_eq!(stage.stored_run(run), before);
}

async fn only_the_output_of_a_terminal_run_is_updated(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = stage.run();
    let before = stage.stored_run(run);
    stage.advance(Duration::from_secs(1));
    let fresh = update(
        r#"{"status_code": "succeeded", "output": {"images": ["signed anew"]}, "metadata": {}, "duration_ms": 1,
            "created_at": "2020-01-01T00:00:00Z", "started_at": "2020-01-01T00:00:00Z", "failure_code": "x",
            "completed_at": "2020-01-01T00:00:00Z", "callback_url": "https://elsewhere.example"}"#,
    );
    assert_eq!(updated(stage.record(run, &fresh)), None);
    let after = stage.stored_run(run);
    assert_eq!(after.output, fresh.output);
    assert_eq!(after.updated_at, stage.now);
    assert_eq!(
        contracts::Run { output: before.output.clone(), updated_at: before.updated_at, ..after },
        before
    );
}

async fn the_same_id_in_two_organizations_is_two_runs(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (org, other, run) = (stage.org, stage.other_org(), new_run());
    stage.record(run, &terminal_run(URL));
    stage.org = other;
    let recorded = stage.record(run, &update(r#"{"status_code": "queued"}"#));
    assert!(matches!(recorded, RecordedRun::Created(..)), "{recorded:?}");
    assert_eq!(testkit::deliveries_of_run(&mut stage.conn, other, run).unwrap(), Some(vec![]));
    assert_eq!(stage.stored_run(run).status_code, RunStatus::Queued);
    let recorded = stage.record(run, &terminal_run(URL));
    assert!(matches!(recorded, RecordedRun::Updated(_, Some(_))), "{recorded:?}");
    stage.org = org;
    assert_eq!(stage.stored_run(run).status_code, RunStatus::Succeeded);
    for org in [org, other] {
        assert_eq!(testkit::deliveries_of_run(&mut stage.conn, org, run).unwrap().unwrap().len(), 1);
    }
}

async fn the_first_terminal_record_makes_exactly_one_automatic_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    stage.record(run, &update(&format!(r#"{{"status_code": "running", "callback_url": "{URL}"}}"#)));
    stage.advance(Duration::from_secs(1));
    let accepted = updated(stage.record(run, &terminal_run(URL))).expect("a delivery");
    let delivery = accepted.delivery;
    assert_eq!(accepted.org_id, stage.org);
    assert_eq!((delivery.is_automatic, delivery.status_code), (true, DeliveryStatus::Pending));
    assert_eq!((delivery.attempt_count, delivery.max_attempts), (0, POLICY.max_attempts));
    assert_eq!((delivery.callback_url.as_str(), delivery.created_at), (URL, stage.now));
    for _ in 0..3 {
        assert_eq!(updated(stage.record(run, &terminal_run(URL))), None);
    }
    assert_eq!(testkit::deliveries_of_run(&mut stage.conn, stage.org, run).unwrap(), Some(vec![delivery]));
}

async fn every_terminal_status_makes_a_delivery_and_no_other_does(backend: Backend) {
    let mut stage = Stage::new(backend);
    let told = [
        ("queued", None),
        ("dispatching", None),
        ("running", None),
        ("succeeded", Some("run.completed")),
        ("failed", Some("run.failed")),
        ("canceled", Some("run.cancelled")),
        ("partial_succeeded", Some("run.partial_succeeded")),
    ];
    for (status, event) in told {
        let body = format!(r#"{{"status_code": "{status}", "callback_url": "{URL}"}}"#);
        let recorded = stage.record(new_run(), &update(&body));
        let RecordedRun::Created(_, accepted) = recorded else { panic!("created, not {recorded:?}") };
        let start = event.map(|event| format!(r#"{{"event": "{event}", "run_id": "#));
        let payload = accepted.map(|accepted| accepted.delivery.payload_bytes);
        assert_eq!(payload.is_some(), event.is_some(), "{status}");
        assert!(payload.unwrap_or_default().starts_with(&start.unwrap_or_default()), "{status}");
    }
}

async fn a_run_without_a_url_and_an_imported_run_make_no_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let recorded = stage.record(new_run(), &update(r#"{"status_code": "succeeded"}"#));
    assert!(matches!(recorded, RecordedRun::Created(_, None)), "{recorded:?}");
    let imported = stage.run();
    // A later record of it makes none either: the run had already ended.
    assert_eq!(updated(stage.record(imported, &terminal_run(URL))), None);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 0);
}

async fn puts_at_once(stage: &Stage, known: bool, updates: [contracts::RunUpdate; 2]) -> Vec<RecordedRun> {
    let (store, org, run) = (stage.store().await, stage.org, new_run());
    if known {
        let open = update(r#"{"status_code": "running"}"#);
        let record = move |tx: &mut _, now| {
            record_run(tx, now, &POLICY, Deliver::Automatically, (org, run), &open, &"req".into())
        };
        store.write(record).await.unwrap();
    }
    let turn = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    at_once(&store, 16, move |tx, now| {
        let update = &updates[turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2];
        record_run(tx, now, &POLICY, Deliver::Automatically, (org, run), update, &"req".into())
    })
    .await
}

fn deliveries(recorded: &[RecordedRun]) -> usize {
    let accepted = |recorded: &&RecordedRun| {
        matches!(recorded, RecordedRun::Created(_, Some(_)) | RecordedRun::Updated(_, Some(_)))
    };
    recorded.iter().filter(accepted).count()
}

/// Older versions recorded such runs. The host is part of an index, whose entries have a maximum size.
async fn a_recorded_run_whose_host_exceeds_the_maximum_length_can_be_delivered(backend: Backend) {
    let mut stage = Stage::new(backend);
    let labels = (0..46_u32).map(|label| {
        let chars = (0..40_u32).map(|index| (label * 40 + index).wrapping_mul(2_654_435_761) >> 16);
        chars.map(|random| char::from_u32(0x4e00 + random % 0x5000).unwrap()).collect::<String>()
    });
    let run = terminal_run(&format!("https://{}/", labels.collect::<Vec<_>>().join(".")));
    let recorded = stage.record(new_run(), &run);
    assert!(matches!(recorded, RecordedRun::Created(_, Some(_))), "{recorded:?}");
    let imported = new_run();
    record_run(&mut stage.conn, stage.now, &POLICY, Deliver::Never, (stage.org, imported), &run, &"r".into())
        .unwrap();
    let delivery = accepted(stage.redeliver(imported));
    assert_eq!(Some(delivery.callback_url), run.callback_url);
}

async fn concurrent_puts_that_create_a_terminal_run_make_one_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let recorded = puts_at_once(&stage, false, [terminal_run(URL), terminal_run(URL)]).await;
    assert_eq!(recorded.iter().filter(|recorded| matches!(recorded, RecordedRun::Created(..))).count(), 1);
    assert_eq!(deliveries(&recorded), 1);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries WHERE is_automatic"), 1);
}

async fn concurrent_puts_that_end_an_open_run_make_one_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let recorded = puts_at_once(&stage, true, [terminal_run(URL), terminal_run(URL)]).await;
    assert_eq!(deliveries(&recorded), 1);
    assert_eq!(stage.number("SELECT count(*) FROM deliveries WHERE is_automatic"), 1);
}

async fn concurrent_puts_that_end_a_run_differently_agree_on_one_status(backend: Backend) {
    let mut stage = Stage::new(backend);
    let failed = update(&format!(r#"{{"status_code": "failed", "callback_url": "{URL}"}}"#));
    let recorded = puts_at_once(&stage, true, [terminal_run(URL), failed]).await;
    let conflicts =
        recorded.iter().filter(|recorded| matches!(recorded, RecordedRun::StatusConflict(_))).count();
    assert_eq!((deliveries(&recorded), conflicts), (1, 8));
    assert_eq!(stage.number("SELECT count(*) FROM deliveries"), 1);
}

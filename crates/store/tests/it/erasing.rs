//! Erasing runs, and pruning rows that ended long ago.

use std::time::Duration;

use ::store::{
    AnyConnection, Erasure, Position, PruneRange, Pruned, RecordedRun, Redelivery, StoreError, erase_run,
    prune, redeliver,
};
use contracts::{DeliveryStatus, FailureReason, RunId, Timing};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use engine::{AttemptResult, Effect, Settlement};
use testkit::{Backend, terminal_run};

use crate::stage::{GRACE, LEASE, POLICY, Stage, URL, finished, new_run, retried, succeeded, update};

testkit::on_both_backends!(
    erasing_a_run_removes_all_content_of_its_callbacks,
    erased_content_does_not_remain_in_the_file_after_rewrites,
    failure_details_that_quote_a_response_keep_only_its_status,
    erased_content_is_kept_as_hash_and_size,
    a_waiting_delivery_is_ended_before_it_is_erased,
    nothing_is_erased_while_a_callback_is_being_sent,
    an_erased_run_cannot_be_filled_or_delivered_again,
    a_run_that_has_not_ended_or_does_not_exist_is_not_erased,
    a_result_after_the_erasure_is_recorded_without_body_and_headers,
    only_rows_that_ended_before_the_given_time_are_pruned_in_batches,
    a_pruned_automatic_delivery_is_not_created_again,
    pruning_a_delivery_removes_its_erased_parts,
    only_runs_without_a_delivery_are_pruned,
);

fn erase(stage: &mut Stage, run: RunId) -> Erasure {
    let (now, org) = (stage.now, stage.org);
    stage.write(|tx| erase_run(tx, now, org, run))
}

/// Creates a run with one delivery that succeeded at its second attempt.
fn delivered(stage: &mut Stage) -> contracts::Delivery {
    let delivery = stage.accept();
    let first = stage.claim_one(delivery.id, 1);
    let now = stage.now;
    stage.finish_one(retried(&first, now));
    let second = stage.claim_one(delivery.id, 2);
    stage.finish_one(succeeded(&second));
    stage.delivery(delivery.id)
}

async fn erasing_a_run_removes_all_content_of_its_callbacks(backend: Backend) {
    let mut stage = Stage::new(backend);
    let before = delivered(&mut stage);
    assert!(before.attempts.iter().any(|attempt| attempt.response_body.is_some()));
    stage.advance(Duration::from_secs(5));
    let bodies = before.attempts.iter().filter(|attempt| attempt.response_body.is_some()).count();
    assert_eq!(erase(&mut stage, before.run_id), Erasure::Erased { deliveries: 1, response_bodies: bodies });
    let after = stage.delivery(before.id);
    assert_eq!(after.payload_bytes, "{}");
    let kept =
        |delivery: &contracts::Delivery| (delivery.status_code, delivery.completed_at, delivery.updated_at);
    assert_eq!(kept(&after), kept(&before));
    for (before, after) in before.attempts.iter().zip(&after.attempts) {
        let timing = before.timing.clone().map(without_headers);
        let plain = "http_error: the receiver answered 503 Service Unavailable".to_owned();
        let error_message = before.error_message.is_some().then_some(plain);
        let expected = contracts::Attempt { response_body: None, error_message, timing, ..before.clone() };
        assert_eq!(after, &expected);
    }
    let run = stage.stored_run(before.run_id);
    assert_eq!(
        (&run.output, &run.metadata, &run.failure_message, &run.callback_url),
        (&None, &None, &None, &None)
    );
    assert_eq!((run.duration_ms, run.updated_at), (Some(123), stage.now));
    let erased_at = stage.now;
    stage.advance(Duration::from_secs(5));
    assert_eq!(erase(&mut stage, before.run_id), Erasure::ErasedBefore(erased_at));
}

fn without_headers(timing: Timing) -> Timing {
    Timing { content_type: None, headers: None, ..timing }
}

async fn failure_details_that_quote_a_response_keep_only_its_status(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    let says = |mut result: AttemptResult| {
        result.record.failure.as_mut().unwrap().detail = "it points to https://private.example".into();
        result
    };
    let first = stage.claim_one(delivery.id, 1);
    stage.finish_one(says(finished(&first, Some(FailureReason::HttpError), Settlement::RetryAt(stage.now))));
    let second = stage.claim_one(delivery.id, 2);
    let late = stage.claimed();
    stage.lose(&late);
    stage.finish_one(says(finished(&second, Some(FailureReason::HttpError), Settlement::Failed)));
    for run in [delivery.run_id, late.held.run_id] {
        assert!(matches!(erase(&mut stage, run), Erasure::Erased { .. }));
    }
    let result = says(finished(&late, Some(FailureReason::HttpError), Settlement::RetryAt(stage.now)));
    assert_eq!(stage.finish_one(result), Effect::Late { closed: false });

    let after = stage.delivery(delivery.id);
    assert_eq!(after.failure_detail.as_deref(), Some("the receiver answered 503 Service Unavailable"));
    let late = stage.delivery(late.held.delivery_id);
    assert_eq!(late.failure_detail.as_deref(), Some("the run's data was erased"));
    let messages =
        after.attempts.iter().chain(&late.attempts).map(|attempt| attempt.error_message.as_deref());
    let plain = Some("http_error: the receiver answered 503 Service Unavailable");
    assert_eq!(messages.collect::<Vec<_>>(), [plain; 3]);
    stage.store().await.checkpoint().await.unwrap();
    assert!(!stage.holds(b"private.example"));
}

/// SQLite stores a value longer than a page in overflow pages, which are freed at each rewrite.
async fn erased_content_does_not_remain_in_the_file_after_rewrites(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (run, said) = (new_run(), "what the run said ".repeat(1000));
    for output in [said.as_str(), "something else"] {
        let body = format!(
            r#"{{"status_code": "succeeded", "output": {{"text": "{output}"}}, "callback_url": "{URL}", "metadata": null}}"#
        );
        stage.record(run, &update(&body));
    }
    stage.advance(GRACE);
    let claimed = stage.claim_due(1).remove(0);
    let now = stage.now;
    stage.finish_one(retried(&claimed, now));
    let again = stage.claim_one(claimed.held.delivery_id, 2);
    stage.finish_one(succeeded(&again));
    assert!(stage.holds(b"what the run said"));
    assert!(matches!(erase(&mut stage, run), Erasure::Erased { deliveries: 1, .. }));
    stage.store().await.checkpoint().await.unwrap();
    assert!(!stage.holds(b"what the run said"));
}

/// The write-ahead log can't be emptied while a reader uses its old content.
#[tokio::test]
async fn a_checkpoint_fails_while_a_reader_uses_the_old_log() {
    let mut stage = Stage::new(Backend::Sqlite);
    let before = delivered(&mut stage);
    let mut reader = stage.database.url().connect().unwrap();
    reader.batch_execute("BEGIN; SELECT * FROM runs").unwrap();
    erase(&mut stage, before.run_id);
    let store = stage.store().await;
    let refused = store.checkpoint().await.unwrap_err();
    assert!(refused.is_outage() && refused.to_string().contains("reads it"), "{refused}");
    reader.batch_execute("COMMIT").unwrap();
    store.checkpoint().await.unwrap();
}

async fn erased_content_is_kept_as_hash_and_size(backend: Backend) {
    let mut stage = Stage::new(backend);
    let before = delivered(&mut stage);
    erase(&mut stage, before.run_id);
    let size = before.payload_bytes.len();
    assert_eq!(stage.count(&format!("erased_parts WHERE part = 'payload' AND size = {size}")), 1);
    assert_eq!(stage.count("erased_parts WHERE part = 'output' AND length(sha256) = 32"), 1);
    assert_eq!(stage.count("erased_parts WHERE part = 'response_body' AND attempt_number = 2"), 1);
}

async fn a_waiting_delivery_is_ended_before_it_is_erased(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept();
    stage.advance(Duration::from_secs(1));
    assert_eq!(erase(&mut stage, waiting.run_id), Erasure::Erased { deliveries: 1, response_bodies: 0 });
    let ended = stage.delivery(waiting.id);
    assert_eq!(
        (ended.status_code, ended.failure_reason_code),
        (DeliveryStatus::Failed, Some(FailureReason::Erased))
    );
    assert_eq!((ended.completed_at, ended.next_attempt_at), (Some(stage.now), None));
    stage.advance(Duration::from_secs(3600));
    assert_eq!(stage.claim_due(10), []);
}

async fn nothing_is_erased_while_a_callback_is_being_sent(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let before = stage.delivery(claimed.held.delivery_id);
    assert_eq!(erase(&mut stage, before.run_id), Erasure::BeingSent(before.id));
    assert_eq!(stage.delivery(before.id), before);
    assert!(stage.stored_run(before.run_id).output.is_some());
}

async fn an_erased_run_cannot_be_filled_or_delivered_again(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = delivered(&mut stage).run_id;
    erase(&mut stage, run);
    assert!(matches!(stage.record(run, &terminal_run(URL)), RecordedRun::Erased));
    assert_eq!(stage.stored_run(run).output, None);
    assert_eq!(stage.redeliver(run), Redelivery::CallbackUrlMissing);
}

async fn a_run_that_has_not_ended_or_does_not_exist_is_not_erased(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    assert_eq!(erase(&mut stage, run), Erasure::RunNotFound);
    let running =
        contracts::RunUpdate::parse(br#"{"status_code": "running", "metadata": {"a": 1}}"#).unwrap();
    stage.record(run, &running);
    assert_eq!(erase(&mut stage, run), Erasure::RunNotTerminal(contracts::RunStatus::Running));
    assert!(stage.stored_run(run).metadata.is_some());
}

async fn a_result_after_the_erasure_is_recorded_without_body_and_headers(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.advance(LEASE);
    stage.recover(Settlement::RetryAt(stage.now));
    let run = stage.delivery(claimed.held.delivery_id).run_id;
    assert!(matches!(erase(&mut stage, run), Erasure::Erased { .. }));
    let mut late = finished(&claimed, None, Settlement::Succeeded);
    late.record.response_body = Some("private".into());
    let timing = without_headers(late.record.timing.clone());
    assert_eq!(stage.finish_one(late), Effect::Late { closed: false });
    let attempt = &stage.delivery(claimed.held.delivery_id).attempts[0];
    assert_eq!((attempt.status_code, &attempt.response_body), (Some(200), &None));
    assert_eq!(attempt.timing.as_ref(), Some(&timing));
}

/// Prunes all rows of an organization, and returns the numbers that each batch removed.
fn prune_all(stage: &mut Stage, before: contracts::Timestamp, limit: usize) -> Vec<(usize, usize)> {
    let mut batches = Vec::new();
    for range in PruneRange::all_of(stage.org, Some(before), None) {
        let mut behind: Option<Position> = None;
        loop {
            let batch: Pruned = stage.write(|tx| prune(tx, range, behind, limit));
            batches.push((batch.deliveries, batch.attempts));
            behind = batch.behind;
            if behind.is_none() {
                break;
            }
        }
    }
    batches.retain(|batch| *batch != (0, 0));
    batches
}

async fn only_rows_that_ended_before_the_given_time_are_pruned_in_batches(backend: Backend) {
    let mut stage = Stage::new(backend);
    for _ in 0..5 {
        delivered(&mut stage);
        stage.advance(Duration::from_secs(1));
    }
    let ends_later = stage.claimed();
    let open = stage.accept();
    stage.advance(Duration::from_secs(10));
    let before = stage.now;
    stage.finish_one(succeeded(&ends_later));
    let young = delivered(&mut stage);
    assert_eq!(prune_all(&mut stage, before, 2), [(2, 4), (2, 4), (1, 2)]);
    assert_eq!(prune_all(&mut stage, before, 2), []);
    assert_eq!((stage.count("deliveries"), stage.count("attempts")), (3, 3));
    for id in [ends_later.held.delivery_id, open.id, young.id] {
        stage.delivery(id);
    }
}

async fn a_pruned_automatic_delivery_is_not_created_again(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    let RecordedRun::Created(_, Some(accepted)) = stage.record(run, &terminal_run(URL)) else {
        panic!("a run that has ended is announced")
    };
    let claimed = stage.claim_one(accepted.delivery.id, 1);
    stage.finish_one(succeeded(&claimed));
    stage.advance(Duration::from_secs(1));
    let now = stage.now;
    assert_eq!(prune_all(&mut stage, now, 10), [(1, 1)]);
    assert!(matches!(stage.record(run, &terminal_run(URL)), RecordedRun::Updated(_, None)));
    assert_eq!(stage.count("deliveries"), 0);
}

async fn pruning_a_delivery_removes_its_erased_parts(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = delivered(&mut stage).run_id;
    erase(&mut stage, run);
    stage.advance(Duration::from_secs(1));
    let now = stage.now;
    assert_eq!(prune_all(&mut stage, now, 10).len(), 1);
    assert_eq!(stage.count("erased_parts WHERE delivery_id IS NOT NULL"), 0);
    assert!(stage.count("erased_parts") > 0, "those of the run remain");
    stage.conn.batch_execute("SELECT 1").unwrap();
}

/// Prunes runs, and returns their number.
fn prune_runs(stage: &mut Stage, limit: usize) -> usize {
    let before = stage.now;
    let mut count = 0;
    for range in PruneRange::all_of(stage.org, None, Some(before)) {
        let mut behind = None;
        loop {
            let batch = stage.write(|tx| prune(tx, range, behind, limit));
            count += batch.runs;
            behind = batch.behind;
            if behind.is_none() {
                break;
            }
        }
    }
    count
}

async fn only_runs_without_a_delivery_are_pruned(backend: Backend) {
    let mut stage = Stage::new(backend);
    let erased = delivered(&mut stage).run_id;
    erase(&mut stage, erased);
    for _ in 0..4 {
        delivered(&mut stage);
    }
    let waiting = stage.accept().run_id;
    let running = new_run();
    stage.record(running, &crate::stage::update(r#"{"status_code": "running"}"#));
    stage.advance(Duration::from_secs(1));
    assert_eq!(prune_runs(&mut stage, 2), 0, "all have deliveries");
    let now = stage.now;
    prune_all(&mut stage, now, 10);
    // The last update of one of them is too recent.
    let updated = new_run();
    stage.record(updated, &terminal_run(URL));
    let deliveries = stage.count("deliveries");
    assert_eq!(prune_runs(&mut stage, 2), 5);
    assert_eq!(stage.count("erased_parts"), 0);
    for run in [waiting, running, updated] {
        assert!(::store::find_run(&mut stage.conn, stage.org, run).unwrap().is_some());
    }
    assert_eq!((prune_runs(&mut stage, 2), stage.count("deliveries")), (0, deliveries));
}

/// PostgreSQL only, which runs write transactions concurrently: a run is either redelivered or removed.
#[tokio::test]
async fn concurrent_redelivery_and_pruning_of_a_run_agree() {
    let mut stage = Stage::new(Backend::Postgres);
    let store = stage.store().await;
    let org = stage.org;
    for _ in 0..50 {
        let run = stage.run();
        stage.advance(Duration::from_secs(1));
        let before = stage.now;
        let redelivering = store
            .write(move |tx, now| ::store::redeliver(tx, now, &crate::stage::POLICY, org, run, "r".into()));
        let pruning = store.write(move |tx, _| {
            for range in PruneRange::all_of(org, None, Some(before)) {
                prune(tx, range, None, 100)?;
            }
            Ok::<_, ::store::StoreError>(())
        });
        let (redelivered, pruned) = tokio::join!(redelivering, pruning);
        pruned.unwrap();
        let is_there = ::store::find_run(&mut stage.conn, org, run).unwrap().is_some();
        match redelivered.unwrap() {
            Redelivery::Accepted(_) => assert!(is_there),
            Redelivery::RunNotFound => assert!(!is_there),
            other => panic!("{other:?}"),
        }
    }
}

/// PostgreSQL only, which runs write transactions concurrently.
#[tokio::test]
async fn concurrent_redelivery_and_erasure_of_a_run_leave_no_content() {
    let mut stage = Stage::new(Backend::Postgres);
    let store = stage.store().await;
    let org = stage.org;
    for _ in 0..50 {
        let run = stage.run();
        let redelivering = store
            .write(move |tx, now| ::store::redeliver(tx, now, &crate::stage::POLICY, org, run, "r".into()));
        let erasing = store.write(move |tx, now| erase_run(tx, now, org, run));
        let (redelivered, erased) = tokio::join!(redelivering, erasing);
        redelivered.unwrap();
        assert!(matches!(erased.unwrap(), Erasure::Erased { .. }));
    }
    assert_eq!(stage.count("delivery_states WHERE payload <> '{}' OR completed_at IS NULL"), 0);
}

/// Later redeliveries lock the rows of their runs, and do not wait either.
#[test]
fn on_postgresql_erasing_and_pruning_wait_for_redeliveries_in_progress_and_block_no_others() {
    let mut stage = Stage::new(Backend::Postgres);
    let (org, now, url) = (stage.org, stage.now, stage.database.url().clone());
    let other_run = stage.run();
    let erasing = move |tx: &mut AnyConnection, run| {
        let erasure = erase_run(tx, now, org, run)?;
        Ok(matches!(erasure, Erasure::Erased { deliveries: 1, .. }))
    };
    let pruning = move |tx: &mut AnyConnection, _| {
        let ended = Some(now + LEASE);
        let ranges = PruneRange::all_of(org, None, ended);
        let mut pruned = Vec::new();
        for range in ranges {
            pruned.push(prune(tx, range, None, 100)?.runs);
        }
        Ok(pruned.iter().sum::<usize>() == 1) // the other run, which has no redelivery in progress
    };
    type Removing = Box<dyn Fn(&mut AnyConnection, RunId) -> Result<bool, StoreError> + Send>;
    let removals: [Removing; 2] = [Box::new(erasing), Box::new(pruning)];
    for (n, removing) in removals.into_iter().enumerate() {
        let run = stage.run();
        let mut making = url.connect().unwrap();
        making.batch_execute("BEGIN").unwrap();
        let made = redeliver(&mut making, now, &POLICY, org, run, "r".into()).unwrap();
        let mut conn = url.connect().unwrap();
        let removal = std::thread::spawn(move || conn.transaction(|tx| removing(tx, run)).unwrap());
        while stage.count("pg_locks WHERE locktype = 'advisory' AND NOT granted") == 0 {
            assert!(!removal.is_finished(), "removal {n} waits");
            std::thread::yield_now();
        }
        let third = stage.run();
        let meanwhile = stage.redeliver(third);
        assert!(matches!(meanwhile, Redelivery::Accepted(_)), "removal {n} blocks no other run");
        making.batch_execute("COMMIT").unwrap();
        assert!(removal.join().unwrap(), "removal {n} sees the delivery");
        let delivery = stage.delivery(crate::stage::accepted(made).id);
        assert_eq!(delivery.payload_bytes == "{}", n == 0);
    }
    assert_eq!(stage.redeliver(other_run), Redelivery::RunNotFound, "it was pruned");
}

//! Recording results: the attempt's record and the delivery's next state.

use std::time::Duration;

use contracts::{AttemptId, ClaimId, Delivery, DeliveryStatus, FailureReason, Timing};
use engine::{AttemptResult, Claimed, Effect, HoldChange, Settlement};
use strum::VariantArray;
use testkit::Backend;

use crate::stage::{
    LEASE, MICROSECOND, Stage, at_once, failed, finished, handed_back, retried, succeeded, timing,
};

testkit::on_both_backends!(
    a_2xx_ends_the_delivery_as_succeeded,
    a_failure_with_budget_left_waits_for_its_retry,
    a_failure_without_budget_ends_the_delivery_as_failed,
    a_success_clears_the_failures_before_it,
    attempts_are_numbered_from_1_and_dated_by_their_claims,
    every_failure_reason_can_be_recorded,
    a_result_under_another_claim_changes_nothing,
    the_same_result_again_changes_nothing,
    effects_are_in_the_order_of_the_batch,
    a_batch_that_is_refused_leaves_nothing_behind,
    an_empty_batch_has_no_effects,
    the_same_result_written_concurrently_is_recorded_once,
    a_late_2xx_replaces_outcome_unknown_and_closes_the_waiting_delivery,
    a_late_failure_replaces_outcome_unknown_and_lets_the_delivery_wait,
    a_late_2xx_does_not_reopen_or_change_a_failed_delivery,
    a_late_2xx_closes_a_delivery_that_waits_after_a_newer_attempt,
    a_late_2xx_during_a_newer_attempt_prevents_further_attempts,
    a_late_result_replaces_a_record_once,
    a_late_result_replaces_nothing_but_outcome_unknown,
    a_late_outcome_unknown_replaces_nothing,
    a_result_of_a_vanished_delivery_is_dropped,
    a_response_body_of_odd_characters_is_kept,
    timings_are_read_back_including_those_of_late_results,
    a_lost_attempt_has_a_timing_of_nulls,
    an_attempt_that_was_not_sent_gives_its_number_back_and_leaves_no_record,
    an_attempt_handed_back_is_not_claimed_before_its_time,
    an_attempt_handed_back_after_a_late_2xx_ends_the_delivery,
    a_late_result_that_says_nothing_was_sent_replaces_outcome_unknown,
    a_late_result_of_a_returned_number_does_not_change_another_attempts_record,
);

async fn a_2xx_ends_the_delivery_as_succeeded(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.advance(Duration::from_micros(85_001));
    let result = succeeded(&claimed);
    assert_eq!(stage.finish_one(result.clone()), Effect::Recorded);
    let delivery = stage.delivery(claimed.held.delivery_id);
    assert_eq!((delivery.status_code, delivery.attempt_count), (DeliveryStatus::Succeeded, 1));
    assert_eq!((delivery.completed_at, delivery.next_attempt_at), (Some(stage.now), None));
    assert_eq!((delivery.failure_reason_code, delivery.failure_detail), (None, None));
    let attempt = &delivery.attempts[0];
    assert_eq!((attempt.id, attempt.delivery_id), (result.record.id, claimed.held.delivery_id));
    assert_eq!((attempt.attempt_number, attempt.created_at), (1, claimed.held.claimed_at));
    assert_eq!((attempt.status_code, attempt.response_time_ms), (Some(200), Some(200)));
    assert_eq!((attempt.response_body.as_deref(), &attempt.error_message), (Some("answer 200"), &None));
}

async fn a_failure_with_budget_left_waits_for_its_retry(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let retry_at = stage.now + Duration::from_secs(10);
    assert_eq!(stage.finish_one(retried(&claimed, retry_at)), Effect::Recorded);
    let delivery = stage.delivery(claimed.held.delivery_id);
    assert_eq!((delivery.status_code, delivery.attempt_count), (DeliveryStatus::Pending, 1));
    assert_eq!((delivery.completed_at, delivery.next_attempt_at), (None, Some(retry_at)));
    assert_eq!(delivery.failure_reason_code, Some(FailureReason::HttpError));
    assert_eq!(delivery.failure_detail.as_deref(), Some("http_error it was"));
    assert_eq!(delivery.attempts[0].error_message.as_deref(), Some("http_error: http_error it was"));
    assert_eq!(delivery.attempts[0].status_code, Some(503));
}

async fn a_failure_without_budget_ends_the_delivery_as_failed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    assert_eq!(
        stage.finish_one(finished(&claimed, Some(FailureReason::Gone), Settlement::Failed)),
        Effect::Recorded
    );
    let delivery = stage.delivery(claimed.held.delivery_id);
    assert_eq!(
        (delivery.status_code, delivery.failure_reason_code),
        (DeliveryStatus::Failed, Some(FailureReason::Gone))
    );
    assert_eq!((delivery.completed_at, delivery.next_attempt_at), (Some(stage.now), None));
    assert_eq!(delivery.attempts[0].status_code, None);
}

async fn a_success_clears_the_failures_before_it(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    stage.finish_one(retried(&first, stage.now));
    let second = stage.claim_one(first.held.delivery_id, 2);
    assert_eq!(stage.delivery(first.held.delivery_id).failure_reason_code, Some(FailureReason::HttpError));
    stage.finish_one(succeeded(&second));
    let delivery = stage.delivery(first.held.delivery_id);
    assert_eq!((delivery.failure_reason_code, delivery.failure_detail), (None, None));
    assert!(delivery.attempts[0].error_message.is_some() && delivery.attempts[1].error_message.is_none());
}

async fn attempts_are_numbered_from_1_and_dated_by_their_claims(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    let mut claimed_at = Vec::new();
    for number in 1..=delivery.max_attempts {
        stage.advance(Duration::from_micros(1_000_003));
        claimed_at.push((number, stage.now));
        let claimed = stage.claim_one(delivery.id, number);
        stage.advance(Duration::from_micros(17));
        let last = number == delivery.max_attempts;
        stage.finish_one(if last { failed(&claimed) } else { retried(&claimed, stage.now) });
    }
    let attempts = stage.delivery(delivery.id).attempts;
    let shown: Vec<_> = attempts.iter().map(|attempt| (attempt.attempt_number, attempt.created_at)).collect();
    assert_eq!(shown, claimed_at);
}

async fn every_failure_reason_can_be_recorded(backend: Backend) {
    let mut stage = Stage::new(backend);
    for reason in FailureReason::VARIANTS.iter().copied() {
        let claimed = stage.claimed();
        stage.finish_one(finished(&claimed, Some(reason), Settlement::Failed));
        let delivery = stage.delivery(claimed.held.delivery_id);
        assert_eq!(delivery.failure_reason_code, Some(reason));
        assert!(delivery.attempts[0].error_message.as_ref().unwrap().starts_with(&format!("{reason}: ")));
    }
}

async fn a_result_under_another_claim_changes_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let before = stage.delivery(claimed.held.delivery_id);
    stage.advance(Duration::from_secs(1));
    let mut stray = succeeded(&claimed);
    stray.claim_id = ClaimId::new(stage.now);
    assert_eq!(stage.finish_one(stray), Effect::Dropped);
    assert_eq!(stage.delivery(claimed.held.delivery_id), before);

    // A result of the previous attempt, which is already recorded, while the next attempt is in flight.
    stage.finish_one(retried(&claimed, stage.now));
    stage.claim_one(claimed.held.delivery_id, 2);
    let before = stage.delivery(claimed.held.delivery_id);
    assert_eq!(stage.finish_one(succeeded(&claimed)), Effect::Dropped);
    assert_eq!(stage.delivery(claimed.held.delivery_id), before);
}

async fn the_same_result_again_changes_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    for result in [succeeded, failed, |claimed: &_| retried(claimed, crate::stage::start())] {
        let claimed = stage.claimed();
        let written = result(&claimed);
        assert_eq!(stage.finish_one(written.clone()), Effect::Recorded);
        let before = stage.delivery(claimed.held.delivery_id);
        stage.advance(Duration::from_secs(1));
        assert_eq!(stage.finish_one(written), Effect::Recorded, "as after a commit of unknown outcome");
        assert_eq!(stage.delivery(claimed.held.delivery_id), before);
        assert_eq!(stage.finish_one(result(&claimed)), Effect::Dropped);
        assert_eq!(stage.delivery(claimed.held.delivery_id), before);
    }
}

async fn effects_are_in_the_order_of_the_batch(backend: Backend) {
    let mut stage = Stage::new(backend);
    let closing = stage.claimed();
    stage.lose(&closing);
    let overtaken = stage.claimed();
    stage.lose(&overtaken);
    stage.claim_one(overtaken.held.delivery_id, 2);
    let [good, bad, last, known, vanished] = std::array::from_fn(|_| stage.claimed());
    stage.finish_one(succeeded(&known));
    let id = stage.literal(vanished.held.delivery_id.0);
    for table in ["deliveries", "open_deliveries"] {
        stage.sql(&format!("DELETE FROM {table} WHERE id = {id}")).unwrap();
    }
    let retry_at = stage.now + LEASE;

    let results = [
        (succeeded(&vanished), Effect::Dropped),
        (succeeded(&closing), Effect::Late { closed: true }),
        (succeeded(&good), Effect::Recorded),
        (failed(&known), Effect::Dropped),
        (succeeded(&overtaken), Effect::Late { closed: false }),
        (retried(&bad, retry_at), Effect::Recorded),
        (failed(&last), Effect::Recorded),
    ];
    for turned in [0, 3, 5] {
        // In any order: each transaction is rolled back, so that every order can be tried.
        let mut results = results.clone();
        results.rotate_left(turned);
        let (batch, effects): (Vec<_>, Vec<_>) = results.into_iter().unzip();
        diesel::Connection::begin_test_transaction(&mut stage.conn).unwrap();
        assert_eq!(stage.finish(&batch), effects);
        let status =
            |stage: &mut Stage, claimed: &Claimed| stage.delivery(claimed.held.delivery_id).status_code;
        let statuses =
            [&closing, &good, &known, &overtaken, &bad, &last].map(|claimed| status(&mut stage, claimed));
        use DeliveryStatus::*;
        assert_eq!(statuses, [Succeeded, Succeeded, Succeeded, Delivering, Pending, Failed]);
        stage.roll_back();
    }
}

async fn a_batch_that_is_refused_leaves_nothing_behind(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [good, bad] = std::array::from_fn(|_| stage.claimed());
    let mut unacceptable = succeeded(&bad);
    unacceptable.record.number = 0;
    let (now, batch) = (stage.now, vec![succeeded(&good), unacceptable]);
    let refused = stage.store().await.write(move |tx, _| ::store::finish(tx, now, &batch)).await;
    assert!(!refused.unwrap_err().is_outage());
    assert_eq!(stage.delivery(good.held.delivery_id).status_code, DeliveryStatus::Delivering);
    assert_eq!(stage.number("SELECT count(*) FROM attempts"), 0);
    assert_eq!(stage.finish_one(succeeded(&good)), Effect::Recorded);
}

async fn an_empty_batch_has_no_effects(backend: Backend) {
    assert_eq!(Stage::new(backend).finish(&[]), []);
}

async fn the_same_result_written_concurrently_is_recorded_once(backend: Backend) {
    let mut stage = Stage::new(backend);
    let batch: Vec<_> = (0..20).map(|_| succeeded(&stage.claimed())).collect();
    let again = batch.clone();
    let answers = at_once(&stage.store().await, 8, move |tx, now| ::store::finish(tx, now, &batch)).await;
    let is_known = |effect: &Effect| matches!(effect, Effect::Recorded | Effect::Locked);
    assert!(answers.iter().flatten().all(is_known), "{answers:?}");
    assert!((0..20).all(|i| answers.iter().any(|effects| effects[i] == Effect::Recorded)));
    assert_eq!(stage.finish(&again), [Effect::Recorded; 20], "locked no more");
    assert_eq!(stage.number("SELECT count(*) FROM attempts"), 20);
}

async fn a_late_2xx_replaces_outcome_unknown_and_closes_the_waiting_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.lose(&claimed);
    let lost = stage.delivery(claimed.held.delivery_id);
    assert_eq!(lost.failure_reason_code, Some(FailureReason::OutcomeUnknown));
    assert!(lost.attempts[0].error_message.as_ref().unwrap().starts_with("outcome_unknown: "));

    stage.advance(Duration::from_secs(3));
    assert_eq!(stage.finish_one(succeeded(&claimed)), Effect::Late { closed: true });
    let closed = stage.delivery(claimed.held.delivery_id);
    assert_eq!((closed.status_code, closed.attempt_count), (DeliveryStatus::Succeeded, 1));
    assert_eq!((closed.completed_at, closed.next_attempt_at), (Some(stage.now), None));
    assert_eq!(
        (closed.updated_at, closed.failure_reason_code, closed.failure_detail),
        (stage.now, None, None)
    );
    let attempt = &closed.attempts[0];
    assert_eq!(
        (attempt.id, attempt.created_at),
        (lost.attempts[0].id, claimed.held.claimed_at),
        "the same record"
    );
    assert_eq!((attempt.status_code, attempt.response_time_ms), (Some(200), Some(200)));
    assert_eq!((attempt.response_body.as_deref(), &attempt.error_message), (Some("answer 200"), &None));
    assert_eq!(stage.claim(&[stage.job(claimed.held.delivery_id, 2)]), []);
    stage.advance(LEASE);
    assert_eq!(stage.claim_due(10), []);
}

async fn a_late_failure_replaces_outcome_unknown_and_lets_the_delivery_wait(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.lose(&claimed);
    let lost = stage.delivery(claimed.held.delivery_id);
    let late = retried(&claimed, stage.now + LEASE);
    assert_eq!(stage.finish_one(late), Effect::Late { closed: false });
    let known = stage.delivery(claimed.held.delivery_id);
    assert_eq!(known.attempts[0].error_message.as_deref(), Some("http_error: http_error it was"));
    assert_eq!(without_attempts(&known), without_attempts(&lost), "it waits for what it waited for");
}

fn without_attempts(delivery: &Delivery) -> Delivery {
    Delivery { attempts: Vec::new(), ..delivery.clone() }
}

async fn a_late_2xx_does_not_reopen_or_change_a_failed_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.advance(LEASE);
    stage.finish_one(finished(&claimed, Some(FailureReason::OutcomeUnknown), Settlement::Failed));
    let failed = stage.delivery(claimed.held.delivery_id);
    stage.advance(Duration::from_secs(1));
    assert_eq!(stage.finish_one(succeeded(&claimed)), Effect::Late { closed: false });
    let known = stage.delivery(claimed.held.delivery_id);
    assert_eq!(known.attempts[0].status_code, Some(200));
    assert_eq!(without_attempts(&known), without_attempts(&failed));
}

async fn a_late_2xx_closes_a_delivery_that_waits_after_a_newer_attempt(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    stage.lose(&first);
    let second = stage.claim_one(first.held.delivery_id, 2);
    stage.finish_one(retried(&second, stage.now));
    assert_eq!(stage.finish_one(succeeded(&first)), Effect::Late { closed: true });
    let delivery = stage.delivery(first.held.delivery_id);
    assert_eq!((delivery.status_code, delivery.failure_reason_code), (DeliveryStatus::Succeeded, None));
    assert_eq!(delivery.attempts[1].status_code, Some(503));
}

async fn a_late_2xx_during_a_newer_attempt_prevents_further_attempts(backend: Backend) {
    let mut stage = Stage::new(backend);
    let end = |second: &Claimed, now, retry| if retry { retried(second, now) } else { failed(second) };
    for retry in [true, false] {
        let first = stage.claimed();
        stage.lose(&first);
        let second = stage.claim_one(first.held.delivery_id, 2);
        let before = stage.delivery(first.held.delivery_id);
        assert_eq!(stage.finish_one(succeeded(&first)), Effect::Late { closed: false });
        let known = stage.delivery(first.held.delivery_id);
        assert_eq!(known.attempts[0].status_code, Some(200));
        assert_eq!(without_attempts(&known), without_attempts(&before), "the newer attempt goes on");

        stage.finish_one(end(&second, stage.now, retry));
        let ended = stage.delivery(first.held.delivery_id);
        assert_eq!((ended.status_code, ended.failure_reason_code), (DeliveryStatus::Succeeded, None));
        assert_eq!((ended.attempts.len(), ended.attempts[1].status_code), (2, Some(503)));
    }
}

async fn a_late_result_replaces_a_record_once(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.lose(&claimed);
    assert_eq!(stage.finish_one(retried(&claimed, stage.now)), Effect::Late { closed: false });
    let before = stage.delivery(claimed.held.delivery_id);
    assert_eq!(stage.finish_one(succeeded(&claimed)), Effect::Dropped);
    assert_eq!(stage.delivery(claimed.held.delivery_id), before);
}

async fn a_late_result_replaces_nothing_but_outcome_unknown(backend: Backend) {
    use FailureReason::*;
    let mut stage = Stage::new(backend);
    for reason in
        [HttpError, Timeout, ConnectionError, SigningUnavailable, Superseded, Gone, Erased, Withdrawn]
    {
        let claimed = stage.claimed();
        stage.finish_one(finished(&claimed, Some(reason), Settlement::RetryAt(stage.now)));
        let before = stage.delivery(claimed.held.delivery_id);
        assert_eq!(stage.finish_one(succeeded(&claimed)), Effect::Dropped);
        assert_eq!(stage.delivery(claimed.held.delivery_id), before);
    }
}

async fn a_late_outcome_unknown_replaces_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [known, lost] = std::array::from_fn(|_| stage.claimed());
    stage.finish_one(retried(&known, stage.now));
    stage.lose(&lost);
    for claimed in [known, lost] {
        let before = stage.delivery(claimed.held.delivery_id);
        stage.advance(Duration::from_secs(1));
        let mut unknown = finished(&claimed, Some(FailureReason::OutcomeUnknown), Settlement::Failed);
        unknown.record.id = AttemptId::new(stage.now);
        assert_eq!(stage.finish_one(unknown), Effect::Dropped);
        assert_eq!(stage.delivery(claimed.held.delivery_id), before);
    }
}

async fn a_result_of_a_vanished_delivery_is_dropped(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.clear();
    for result in [succeeded, failed] {
        assert_eq!(stage.finish_one(result(&claimed)), Effect::Dropped);
    }
    assert_eq!(stage.number("SELECT count(*) FROM attempts"), 0);
}

async fn a_response_body_of_odd_characters_is_kept(backend: Backend) {
    let mut stage = Stage::new(backend);
    let kinds =
        "\u{1}\u{7f}\u{85}\r\n\t'\"\\{},NULL \u{feff}\u{fffd}\u{ffff}\u{2028}\u{202e}e\u{301}🦀\u{10ffff}";
    for body in ["", "NULL", "{}", kinds, &kinds.repeat(200)] {
        let [first, second] = std::array::from_fn(|_| stage.claimed());
        stage.lose(&second);
        for claimed in [first, second] {
            let mut result = succeeded(&claimed);
            result.record.response_body = Some(body.to_owned());
            result.record.response_time_ms = Some(i64::MAX);
            assert_ne!(stage.finish_one(result), Effect::Dropped);
            let attempt = stage.delivery(claimed.held.delivery_id).attempts.remove(0);
            assert_eq!(
                (attempt.response_body.as_deref(), attempt.response_time_ms),
                (Some(body), Some(i64::MAX))
            );
        }
    }
}

async fn timings_are_read_back_including_those_of_late_results(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [first, second] = std::array::from_fn(|_| stage.claimed());
    stage.lose(&second);
    for (claimed, number) in [(first, 7), (second, 8)] {
        let mut result = retried(&claimed, stage.now);
        result.record.timing = timing(number);
        assert_ne!(stage.finish_one(result), Effect::Dropped);
        let attempt = stage.delivery(claimed.held.delivery_id).attempts.remove(0);
        assert_eq!(attempt.timing, Some(timing(number)));
    }
}

async fn a_lost_attempt_has_a_timing_of_nulls(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.advance(LEASE);
    stage.recover(Settlement::RetryAt(stage.now));
    let attempt = stage.delivery(claimed.held.delivery_id).attempts.remove(0);
    assert_eq!(attempt.timing, Some(Timing::default()));
}

async fn an_attempt_that_was_not_sent_gives_its_number_back_and_leaves_no_record(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    stage.finish_one(retried(&first, stage.now));
    let second = stage.claim_one(first.held.delivery_id, 2);
    let before = stage.delivery(first.held.delivery_id);
    let at = stage.now + Duration::from_secs(2);
    assert_eq!(stage.finish_one(handed_back(&second, at)), Effect::Recorded);
    let after = stage.delivery(first.held.delivery_id);
    assert_eq!((after.status_code, after.next_attempt_at), (DeliveryStatus::Pending, Some(at)));
    assert_eq!((after.attempt_count, after.attempts.len()), (1, 1));
    assert_eq!(
        (after.failure_reason_code, after.failure_detail),
        (before.failure_reason_code, before.failure_detail)
    );
    stage.now = at;
    stage.claim_one(first.held.delivery_id, 2);
}

async fn an_attempt_handed_back_is_not_claimed_before_its_time(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    let at = stage.now + Duration::from_secs(2);
    stage.finish_one(handed_back(&claimed, at));
    let job = stage.job(claimed.held.delivery_id, 1);
    stage.now = at - MICROSECOND;
    assert_eq!(stage.claim(std::slice::from_ref(&job)), [], "by the doorbell, come once more");
    assert_eq!(stage.claim_due(10), []);
    stage.now = at;
    assert_eq!(stage.claim(&[job]).len(), 1);
}

async fn an_attempt_handed_back_after_a_late_2xx_ends_the_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    stage.lose(&first);
    let second = stage.claim_one(first.held.delivery_id, 2);
    assert_eq!(stage.finish_one(succeeded(&first)), Effect::Late { closed: false });
    assert_eq!(stage.finish_one(handed_back(&second, stage.now)), Effect::Recorded);
    let ended = stage.delivery(first.held.delivery_id);
    assert_eq!((ended.status_code, ended.attempt_count), (DeliveryStatus::Succeeded, 1));
    assert_eq!(ended.attempts.len(), 1);
}

async fn a_late_result_that_says_nothing_was_sent_replaces_outcome_unknown(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.lose(&claimed);
    assert_eq!(stage.finish_one(handed_back(&claimed, stage.now)), Effect::Late { closed: false });
    let known = stage.delivery(claimed.held.delivery_id);
    assert_eq!(known.attempts[0].error_message.as_deref(), Some("timeout: not sent: no socket"));
    assert_eq!(known.attempt_count, 1, "the number stays taken");
}

/// Its commit succeeded unnoticed; in the meantime the number was claimed again and lost.
async fn a_late_result_of_a_returned_number_does_not_change_another_attempts_record(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    let result = handed_back(&first, stage.now);
    assert_eq!(stage.finish_one(result.clone()), Effect::Recorded);
    stage.advance(MICROSECOND);
    let second = stage.claim_one(first.held.delivery_id, 1);
    stage.lose(&second);
    let before = stage.delivery(first.held.delivery_id);
    assert_eq!(stage.finish_one(result), Effect::Dropped);
    assert_eq!(stage.delivery(first.held.delivery_id), before);
}

/// SQLite has one writer at a time.
#[test]
fn on_postgresql_a_hold_whose_destination_is_locked_is_skipped_and_others_are_recorded() {
    let mut stage = Stage::new(Backend::Postgres);
    let [holding, again, other] = [0, 1, 2].map(|_| stage.claimed());
    let until = HoldChange::HoldUntil(stage.now + Duration::from_secs(30));
    let hold = |claimed: &Claimed, now| AttemptResult { hold: until, ..retried(claimed, now) };
    let now = stage.now;
    assert_eq!(stage.finish_one(hold(&holding, now)), Effect::Recorded);
    let lock = stage.database.lock("destinations");
    let batch = [hold(&again, now), succeeded(&other)];
    assert_eq!(stage.finish(&batch), [Effect::Locked, Effect::Recorded]);
    drop(lock);
    assert_eq!(stage.finish_one(batch[0].clone()), Effect::Recorded);
}

/// SQLite has one writer at a time.
#[test]
fn on_postgresql_a_result_whose_row_is_locked_is_skipped_and_others_are_recorded() {
    let mut stage = Stage::new(Backend::Postgres);
    let [locked, free, late] = [0, 1, 2].map(|_| stage.claimed());
    stage.lose(&late);
    let of = |claimed: &Claimed| format!("'{}'", claimed.held.delivery_id);
    let lock = stage.database.lock(&format!("open_deliveries WHERE id IN ({}, {})", of(&locked), of(&late)));
    let batch = [&locked, &free, &late].map(succeeded);
    assert_eq!(stage.finish(&batch), [Effect::Locked, Effect::Recorded, Effect::Locked]);
    assert_eq!(stage.delivery(locked.held.delivery_id).status_code, DeliveryStatus::Delivering);
    assert_eq!(stage.delivery(free.held.delivery_id).status_code, DeliveryStatus::Succeeded);
    drop(lock);
    assert_eq!(stage.finish(&batch), [Effect::Recorded, Effect::Recorded, Effect::Late { closed: true }]);
}

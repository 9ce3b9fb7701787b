//! Claims by doorbell, claims by the relay, and reading back claims.

use std::time::Duration;

use ::store::{claim_due, claim_jobs, claimed_under};
use contracts::{ClaimId, DeliveryStatus, Destination};
use diesel::connection::SimpleConnection;
use engine::{RelayPlan, Settlement};
use testkit::Backend;

use crate::stage::{
    GRACE, LEASE, MICROSECOND, POLICY, Stage, as_read_back, at_once, ids, plan, retried, succeeded,
};

testkit::on_both_backends!(
    a_doorbell_claims_its_attempt_for_one_lease,
    a_stale_or_early_doorbell_claims_nothing,
    a_doorbell_for_a_retry_claims_it_only_once_it_is_due,
    a_doorbell_beyond_the_budget_claims_nothing,
    doorbells_of_one_attempt_claim_it_once_within_a_batch_and_after_it,
    a_batch_claims_the_attempts_that_can_be_claimed,
    concurrent_doorbells_claim_each_attempt_once,
    the_relay_leaves_a_new_delivery_to_its_doorbell_for_the_grace,
    the_relay_claims_the_oldest_first_up_to_its_limit,
    the_relay_claims_retries_when_they_are_due,
    the_relay_claims_nothing_out_of_budget_in_flight_or_finished,
    concurrent_relays_claim_disjoint_attempts,
    attempts_held_under_a_claim_id_can_be_read_back,
    a_lease_expires_at_its_end_and_not_before,
);

async fn a_doorbell_claims_its_attempt_for_one_lease(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    let claim_id = ClaimId::new(stage.now);
    let jobs = [stage.job(delivery.id, 1)];
    let claimed = claim_jobs(&mut stage.conn, stage.now, LEASE, claim_id, &jobs).unwrap().remove(0);
    // The doorbell's organization is ignored; the row's organization counts.
    assert_eq!(
        (claimed.held.org_id, claimed.held.run_id, claimed.held.delivery_id),
        (stage.org, delivery.run_id, delivery.id)
    );
    assert_eq!((claimed.held.attempt, claimed.held.max_attempts), (1, POLICY.max_attempts));
    assert_eq!((claimed.held.claim_id, claimed.held.claimed_at), (claim_id, stage.now));
    assert_eq!(
        (&claimed.callback_url, &claimed.payload),
        (&delivery.callback_url, &delivery.payload_bytes.clone().into())
    );
    let shown = stage.delivery(delivery.id);
    assert_eq!((shown.status_code, shown.attempt_count), (DeliveryStatus::Delivering, 1));
    assert_eq!((shown.next_attempt_at, shown.completed_at), (None, None));
    assert_eq!(stage.micros("open_deliveries", "wake_at"), (stage.now + LEASE).as_micros());
}

async fn a_stale_or_early_doorbell_claims_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    let early: Vec<_> = [-1, 0, 2, 3, i32::MAX].map(|attempt| stage.job(delivery.id, attempt)).into();
    assert_eq!(stage.claim(&early), []);
    assert_eq!(stage.claim(&[]), []);
    assert_eq!(
        stage.claim(&[stage.job(contracts::DeliveryId::new(stage.now), 1)]),
        [],
        "of an unknown delivery"
    );
    assert_eq!(stage.delivery(delivery.id), delivery);
    let first = stage.claim_one(delivery.id, 1);
    assert_eq!(stage.claim(&[stage.job(delivery.id, 1), stage.job(delivery.id, 2)]), [], "on its way");
    stage.finish_one(retried(&first, stage.now));
    assert_eq!(stage.claim(&[stage.job(delivery.id, 1)]), [], "stale");
    let second = stage.claim_one(delivery.id, 2);
    stage.finish_one(succeeded(&second));
    assert_eq!(stage.claim(&[stage.job(delivery.id, 2), stage.job(delivery.id, 3)]), [], "finished");
}

async fn a_doorbell_for_a_retry_claims_it_only_once_it_is_due(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    let due = stage.now + Duration::from_secs(10);
    stage.finish_one(retried(&first, due));
    let retry = [stage.job(first.held.delivery_id, 2)];
    stage.now = due - MICROSECOND;
    assert_eq!(stage.claim(&retry), []);
    stage.now = due;
    let claimed = stage.claim(&retry);
    assert_eq!((claimed[0].held.attempt, &claimed[0].payload), (2, &first.payload));
    assert_ne!(claimed[0].held.claim_id, first.held.claim_id);
}

async fn a_doorbell_beyond_the_budget_claims_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    stage.sql("UPDATE open_deliveries SET attempt_count = max_attempts").unwrap();
    assert_eq!(stage.claim(&[stage.job(delivery.id, POLICY.max_attempts + 1)]), []);
}

async fn doorbells_of_one_attempt_claim_it_once_within_a_batch_and_after_it(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [one, two] = stage.accept_many(2)[..] else { unreachable!() };
    let batch =
        [stage.job(one, 1), stage.job(two, 1), stage.job(one, 1), stage.job(one, 2), stage.job(one, 1)];
    let claimed = stage.claim(&batch);
    assert_eq!(ids(&claimed), [one.min(two), one.max(two)]);
    assert!(claimed.iter().all(|claimed| claimed.held.attempt == 1));
    assert_eq!(stage.claim(&batch), []);
    assert_eq!(stage.delivery(one).attempt_count, 1);
}

async fn a_batch_claims_the_attempts_that_can_be_claimed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut fresh = stage.accept_many(300);
    let taken: Vec<_> = fresh.iter().step_by(3).map(|id| stage.job(*id, 1)).collect();
    assert_eq!(stage.claim(&taken).len(), 100);
    let all: Vec<_> = fresh.iter().rev().map(|id| stage.job(*id, 1)).collect();
    let claimed = stage.claim(&all);
    fresh = fresh.into_iter().enumerate().filter(|(i, _)| i % 3 != 0).map(|(_, id)| id).collect();
    fresh.sort_unstable();
    assert_eq!(ids(&claimed), fresh);
}

async fn concurrent_doorbells_claim_each_attempt_once(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut fresh = stage.accept_many(40);
    fresh.sort_unstable();
    let jobs: Vec<_> = fresh.iter().map(|id| stage.job(*id, 1)).collect();
    let batches =
        at_once(&stage.store().await, 8, move |tx, now| claim_jobs(tx, now, LEASE, ClaimId::new(now), &jobs))
            .await;
    assert_eq!(ids(&batches.concat()), fresh);
}

async fn the_relay_leaves_a_new_delivery_to_its_doorbell_for_the_grace(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    stage.advance(GRACE - MICROSECOND);
    assert_eq!(stage.claim_due(10), []);
    stage.advance(MICROSECOND);
    let claimed = stage.claim_due(10);
    assert_eq!((ids(&claimed), claimed[0].held.attempt), (vec![delivery.id], 1));
    assert_eq!(stage.micros("open_deliveries", "wake_at"), (stage.now + LEASE).as_micros());
    assert_eq!(stage.claim(&[stage.job(delivery.id, 1)]), [], "the doorbell that comes late after all");
}

async fn the_relay_claims_the_oldest_first_up_to_its_limit(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(stage.accept().id);
        stage.advance(MICROSECOND);
    }
    // Deliveries are ordered by due time, not by creation time: the first one is now due last.
    let first = stage.claim_one(made[0], 1);
    stage.finish_one(retried(&first, stage.now + Duration::from_secs(5)));
    made.rotate_left(1);
    stage.advance(Duration::from_secs(10));
    assert_eq!(stage.claim_due(0), []);
    for oldest in made.chunks(2) {
        let mut oldest = oldest.to_vec();
        oldest.sort_unstable();
        assert_eq!(ids(&stage.claim_due(2)), oldest);
    }
    assert_eq!(stage.claim_due(2), []);
}

async fn the_relay_claims_retries_when_they_are_due(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    let due = stage.now + Duration::from_secs(3_600);
    stage.finish_one(retried(&first, due));
    stage.now = due - MICROSECOND;
    assert_eq!(stage.claim_due(10), []);
    stage.now = due;
    let claimed = stage.claim_due(10);
    assert_eq!((claimed[0].held.delivery_id, claimed[0].held.attempt), (first.held.delivery_id, 2));
    assert_eq!((claimed[0].held.claimed_at, &claimed[0].payload), (due, &first.payload));
}

async fn the_relay_claims_nothing_out_of_budget_in_flight_or_finished(backend: Backend) {
    let mut stage = Stage::new(backend);
    stage.accept();
    stage.sql("UPDATE open_deliveries SET attempt_count = max_attempts").unwrap();
    stage.claimed();
    let done = stage.claimed();
    stage.finish_one(succeeded(&done));
    stage.advance(LEASE * 100);
    assert_eq!(stage.claim_due(10), []);
}

async fn concurrent_relays_claim_disjoint_attempts(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut due = stage.accept_many(40);
    due.sort_unstable();
    stage.advance(GRACE);
    let batches = at_once(&stage.store().await, 16, move |tx, now| {
        claim_due(tx, now, LEASE, ClaimId::new(now), &plan(5))
    })
    .await;
    let batches: Vec<_> = batches.into_iter().map(|due| due.claimed).collect();
    assert!(batches.iter().all(|batch| batch.len() <= 5));
    // Relays skip locked rows, so some may have claimed less than was due.
    let mut taken = batches.concat();
    taken.extend(stage.claim_due(40));
    assert_eq!(ids(&taken), due);
}

/// SQLite has one writer at a time, so no rows are locked.
#[test]
fn on_postgresql_claims_skip_rows_locked_by_another_transaction() {
    let mut stage = Stage::new(Backend::Postgres);
    let [locked, free] = stage.accept_many(2)[..] else { unreachable!() };
    stage.advance(GRACE);
    let mut other = stage.database.url().connect().unwrap();
    let lock = format!("BEGIN; SELECT 1 FROM open_deliveries WHERE id = '{locked}' FOR UPDATE");
    other.batch_execute(&lock).unwrap();
    assert_eq!(stage.claim(&[stage.job(locked, 1)]), []);
    assert_eq!(ids(&stage.claim_due(10)), [free]);
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(ids(&stage.claim_due(10)), [locked]);
}

async fn attempts_held_under_a_claim_id_can_be_read_back(backend: Backend) {
    let mut stage = Stage::new(backend);
    let due = stage.accept_many(3);
    stage.advance(GRACE);
    let mut claimed = as_read_back(stage.claim_due(2));
    let others = stage.claim_due(2);
    let mut held = claimed_under(&mut stage.conn, claimed[0].held.claim_id).unwrap();
    for claims in [&mut claimed, &mut held] {
        claims.sort_unstable_by_key(|claimed| claimed.held.delivery_id);
    }
    assert_eq!((held.len() + others.len(), &held), (due.len(), &claimed));
    stage.finish_one(succeeded(&claimed[0]));
    assert_eq!(claimed_under(&mut stage.conn, claimed[0].held.claim_id).unwrap(), claimed[1..]);
    assert_eq!(claimed_under(&mut stage.conn, ClaimId::new(stage.now)).unwrap(), []);
}

async fn a_lease_expires_at_its_end_and_not_before(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.accept();
    stage.advance(MICROSECOND);
    let later = stage.claimed();
    stage.advance(LEASE - MICROSECOND * 2);
    assert_eq!(stage.recover(Settlement::Failed), []);
    stage.advance(MICROSECOND);
    diesel::Connection::begin_test_transaction(&mut stage.conn).unwrap();
    assert_eq!(stage.recover(Settlement::Failed), std::slice::from_ref(&claimed.held), "as it was claimed");
    stage.roll_back();
    stage.advance(LEASE);
    let expired = stage.recover(Settlement::RetryAt(stage.now));
    assert_eq!(expired, [claimed.held.clone(), later.held], "oldest first");
    let recovered = stage.delivery(claimed.held.delivery_id);
    assert_eq!((recovered.status_code, recovered.attempts.len()), (DeliveryStatus::Pending, 1));
    assert_eq!(stage.recover(Settlement::Failed), []);
}

/// The cost does not depend on the backlog: waiting deliveries, by time and by destination, and attempts in
/// flight have separate indexes.
#[tokio::test]
async fn the_relay_reads_only_the_index_entries_it_needs() {
    let mut stage = Stage::new(Backend::Postgres);
    let held = stage.claimed();
    let waiting = stage.accept().id;
    stage.copy(waiting, 5000, 1);
    stage.sql("ANALYZE").unwrap();
    stage.advance(LEASE + GRACE);
    assert_eq!(stage.recover(Settlement::Failed).len(), 1);
    let claim_id = held.held.claim_id;
    assert_eq!(stage.write(|tx| claimed_under(tx, claim_id)).len(), 0);
    // Both indexes contain only attempts in flight.
    assert_eq!(scans(&mut stage, "leases_by_end") + scans(&mut stage, "claimed_by_age"), 2);
    assert_eq!(stage.claim_due(18).len(), 9 + 1);
    assert_eq!(scans(&mut stage, "waiting_by_wake_at"), 1);
    // Two steps of a walk and a third that finds nothing, then the candidates of two destinations.
    assert_eq!(scans(&mut stage, "waiting_by_destination"), 5);
    let read = tuples_read(&mut stage);
    // The backlog of a full destination adds no cost to a poll.
    let rooms = [(Destination::from(0), 0)].into();
    assert_eq!(stage.poll(&RelayPlan { rooms, ..plan(18) }).claimed, []);
    let again = tuples_read(&mut stage) - read;
    assert!(read.max(again) < 600, "of 5,000: {read}, {again}");
}

/// Returns the number of entries read from the indexes of waiting deliveries.
fn tuples_read(stage: &mut Stage) -> i64 {
    stage.sql("SELECT pg_stat_force_next_flush()").unwrap();
    stage.number(
        "SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE indexrelname LIKE 'waiting_%'",
    )
}

/// Returns how often an index has been used.
fn scans(stage: &mut Stage, index: &str) -> i64 {
    stage.sql("SELECT pg_stat_force_next_flush()").unwrap();
    stage.number(&format!("SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = '{index}'"))
}

//! The relay: which due deliveries it claims, how it shares slots, and what it reports about the rest.

use ::store::{DueClaim, RowsRefused, claim_due, recover_leases};
use contracts::{ClaimId, DeliveryId, DeliveryStatus, Destination};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use engine::{ByteRoom, Claimed, Effect, Failure, HeldAttempt, RelayPlan, Settlement};
use testkit::Backend;

use crate::stage::{
    GRACE, LEASE, MICROSECOND, Stage, URL, at_once, ids, job_to, lost, plan, retried, succeeded,
};

testkit::on_both_backends!(
    the_room_is_shared_equally_among_destinations_oldest_deliveries_first,
    a_poll_that_sees_all_due_deliveries_reports_no_backlog,
    with_a_backlog_consecutive_polls_walk_all_destinations,
    the_backlog_of_a_full_destination_does_not_hide_other_deliveries,
    a_walk_passes_destinations_without_due_deliveries,
    a_delivery_that_is_stepped_over_is_not_claimed,
    a_payload_beyond_the_budget_is_not_claimed_and_its_destination_is_next,
    a_target_is_served_without_the_doorbells_grace_but_not_before_its_time,
    a_doorbell_with_another_destination_than_the_rows_claims_nothing,
    concurrent_relays_serve_every_destination_once,
    a_refused_claim_names_the_rows_it_had_chosen,
    a_refused_recovery_names_the_rows_it_had_found,
    recovery_steps_over_the_given_deliveries,
);

const OTHER_URL: &str = "https://other.example.com/";

fn destinations(claimed: &[Claimed]) -> Vec<Destination> {
    let mut destinations: Vec<_> = claimed.iter().map(|claimed| claimed.held.destination).collect();
    destinations.sort_unstable();
    destinations.dedup();
    destinations
}

async fn the_room_is_shared_equally_among_destinations_oldest_deliveries_first(backend: Backend) {
    let mut stage = Stage::new(backend);
    let mut of = [Vec::new(), Vec::new()];
    for (i, url) in [URL, URL, URL, URL, OTHER_URL, OTHER_URL].into_iter().enumerate() {
        of[i / 4].push(stage.accept_to(url).id);
        stage.advance(MICROSECOND);
    }
    stage.advance(GRACE);
    let mut expected = vec![of[0][0], of[0][1], of[1][0], of[1][1]];
    expected.sort_unstable();
    assert_eq!(ids(&stage.claim_due(4)), expected);
    let mut expected = of[0][2..].to_vec();
    expected.sort_unstable();
    assert_eq!(ids(&stage.claim_due(4)), expected);
    // One destination may have less room.
    let [one, ..] = stage.accept_many(3)[..] else { unreachable!() };
    stage.advance(GRACE);
    let narrow = RelayPlan { ordinary_room: 1, ..plan(10) };
    assert_eq!(ids(&stage.poll(&narrow).claimed), [one]);
    let full = RelayPlan { rooms: [(stage.destination(URL), 0)].into(), ..plan(10) };
    let due = stage.poll(&full);
    assert_eq!((due.claimed, due.poll.limited), (vec![], vec![stage.destination(URL)]));
}

async fn a_poll_that_sees_all_due_deliveries_reports_no_backlog(backend: Backend) {
    let mut stage = Stage::new(backend);
    assert_eq!(stage.poll(&plan(10)), DueClaim::default());
    let waiting = stage.accept().id;
    stage.copy(waiting, 500, 250);
    stage.advance(GRACE + LEASE);
    let DueClaim { claimed, poll } = stage.poll(&plan(100));
    assert_eq!(destinations(&claimed).len(), 100);
    assert!(!poll.has_backlog && poll.has_more);
    // The next poll continues after the last served destination.
    assert_eq!(poll.cursor, destinations(&claimed).last().copied());
    let next = stage.poll(&RelayPlan { cursor: poll.cursor, ..plan(100) });
    assert!(
        destinations(&next.claimed).iter().all(|destination| !destinations(&claimed).contains(destination))
    );
    let DueClaim { claimed, poll } = stage.poll(&plan(1000));
    assert_eq!(claimed.len(), 501 - 200);
    assert!(!poll.has_backlog && !poll.has_more && poll.cursor.is_none());
}

async fn with_a_backlog_consecutive_polls_walk_all_destinations(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept().id;
    stage.copy(waiting, 900, 300);
    stage.advance(GRACE + LEASE);
    let mut served = Vec::new();
    let mut plan = plan(100);
    for poll in 1..=4 {
        let due = stage.poll(&plan);
        served.extend(destinations(&due.claimed));
        (plan.cursor, plan.has_backlog) = (due.poll.cursor, due.poll.has_backlog);
        assert_eq!(destinations(&due.claimed).len(), if poll == 4 { 1 } else { 100 });
        assert_eq!(plan.cursor.is_none(), poll == 4, "the circle has ended");
    }
    served.sort_unstable();
    served.dedup();
    assert_eq!(served.len(), 301, "every destination was served");
    let again = stage.poll(&plan);
    assert_eq!(destinations(&again.claimed)[0], Destination::from(0), "the next circle begins");
}

async fn the_backlog_of_a_full_destination_does_not_hide_other_deliveries(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept().id;
    stage.copy(waiting, 1000, 1);
    stage.advance(MICROSECOND * 2000);
    let behind = stage.accept_to(OTHER_URL).id;
    stage.advance(GRACE);
    let rooms = [(Destination::from(0), 0), (stage.destination(URL), 0)].into();
    let due = stage.poll(&RelayPlan { rooms, ..plan(10) });
    assert_eq!(ids(&due.claimed), [behind]);
    assert_eq!(due.poll.limited.len(), 2);
    assert!(!due.poll.has_more);
}

async fn a_walk_passes_destinations_without_due_deliveries(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept().id;
    stage.copy(waiting, 1000, 500);
    let later = (stage.now + GRACE + LEASE).as_micros() - stage.now.as_micros();
    let put_off = match backend {
        Backend::Postgres => format!("wake_at + {later} * interval '1 microsecond'"),
        Backend::Sqlite => format!("wake_at + {later}"),
    };
    stage
        .sql(&format!(
            "UPDATE open_deliveries SET wake_at = {put_off} WHERE destination < 490 AND destination >= 0"
        ))
        .unwrap();
    stage.advance(GRACE + LEASE - MICROSECOND * 10_000);
    let mut walking = RelayPlan { has_backlog: true, cursor: Some(Destination::from(-1)), ..plan(100) };
    let mut claimed = Vec::new();
    for _ in 0..3 {
        let due = stage.poll(&walking);
        claimed.extend(due.claimed);
        (walking.cursor, walking.has_backlog) = (due.poll.cursor, due.poll.has_backlog);
        if walking.cursor.is_none() {
            break;
        }
    }
    let found: Vec<_> =
        destinations(&claimed).into_iter().filter(|of| *of != stage.destination(URL)).collect();
    assert_eq!(found, (490..500).map(Destination::from).collect::<Vec<_>>());
    assert!(!walking.has_backlog, "the next poll reads by time");
}

async fn a_delivery_that_is_stepped_over_is_not_claimed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [first, second, third] = stage.accept_many(3)[..] else { unreachable!() };
    stage.advance(GRACE);
    let stepping = RelayPlan { stepped_over: vec![first, third], ..plan(1) };
    assert_eq!(ids(&stage.poll(&stepping).claimed), [second]);
    assert_eq!(stage.poll(&stepping).claimed, []);
    assert_eq!(stage.claim_due(10).len(), 2);
}

async fn a_payload_beyond_the_budget_is_not_claimed_and_its_destination_is_next(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept();
    stage.advance(GRACE);
    let bytes = u64::try_from(waiting.payload_bytes.len()).unwrap();
    let room = |free| ByteRoom { free, is_idle: false, per_destination: u64::MAX };
    let due = stage.poll(&RelayPlan { bytes: room(bytes - 1), ..plan(10) });
    assert_eq!((due.claimed, due.poll.too_large), (vec![], Some(bytes)));
    assert_eq!(stage.delivery(waiting.id).status_code, DeliveryStatus::Pending);
    let next = RelayPlan { bytes: room(bytes), cursor: due.poll.cursor, has_backlog: true, ..plan(10) };
    assert_eq!(ids(&stage.poll(&next).claimed), [waiting.id]);
}

async fn a_target_is_served_without_the_doorbells_grace_but_not_before_its_time(backend: Backend) {
    let mut stage = Stage::new(backend);
    let [new, other] = [URL, OTHER_URL].map(|url| stage.accept_to(url).id);
    let tried = stage.claimed();
    stage.finish_one(retried(&tried, stage.now + MICROSECOND));
    let targets = RelayPlan { targets: vec![stage.destination(URL)], ..plan(10) };
    assert_eq!(ids(&stage.poll(&targets).claimed), [new]);
    assert_eq!(stage.claim_due(10), [], "the other's doorbell may still come");
    stage.advance(MICROSECOND);
    assert_eq!(ids(&stage.poll(&targets).claimed), [tried.held.delivery_id]);
    stage.advance(GRACE);
    assert_eq!(ids(&stage.claim_due(10)), [other]);
}

async fn a_doorbell_with_another_destination_than_the_rows_claims_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept().id;
    let outdated = job_to(stage.destination(OTHER_URL), delivery, 1);
    assert_eq!(stage.claim(&[outdated]), []);
    stage.claim_one(delivery, 1);
}

async fn concurrent_relays_serve_every_destination_once(backend: Backend) {
    let mut stage = Stage::new(backend);
    let waiting = stage.accept().id;
    stage.copy(waiting, 80, 40);
    stage.advance(GRACE + LEASE);
    let poll = |tx: &mut _, now| claim_due(tx, now, LEASE, ClaimId::new(now), &plan(10));
    let dues = at_once(&stage.store().await, 16, poll).await;
    let mut claimed: Vec<_> = dues.into_iter().flat_map(|due| due.claimed).collect();
    // Relays skip locked rows, so some may have claimed less than was due.
    claimed.extend(stage.claim_due(81));
    let mut distinct = ids(&claimed);
    distinct.dedup();
    assert_eq!((claimed.len(), distinct.len(), destinations(&claimed).len()), (81, 81, 41));
}

/// PostgreSQL only: SQLite has one writer at a time.
#[test]
fn two_concurrent_relays_claim_different_rows() {
    let mut stage = Stage::new(Backend::Postgres);
    let waiting = stage.accept().id;
    stage.copy(waiting, 4, 2);
    stage.advance(GRACE + LEASE);
    let mut other = stage.database.url().connect().unwrap();
    let now = stage.now;
    other.batch_execute("BEGIN").unwrap();
    let mut claimed = claim_due(&mut other, now, LEASE, ClaimId::new(now), &plan(3)).unwrap().claimed;
    assert_eq!(destinations(&claimed).len(), 3);
    claimed.extend(stage.claim_due(10));
    other.batch_execute("COMMIT").unwrap();
    let mut distinct = ids(&claimed);
    distinct.dedup();
    assert_eq!((claimed.len(), distinct.len()), (5, 5));
}

/// Makes every change of this open delivery fail.
fn refuse_changes(stage: &mut Stage, delivery: DeliveryId) {
    let id = stage.literal(delivery.0);
    let statements = match stage.database.url() {
        ::store::DatabaseUrl::Postgres(_) => format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'a broken row'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE OR DELETE ON open_deliveries FOR EACH ROW WHEN (OLD.id = {id})
                 EXECUTE FUNCTION refuse()"
        ),
        ::store::DatabaseUrl::Sqlite(_) => format!(
            "CREATE TRIGGER refuse BEFORE UPDATE ON open_deliveries WHEN OLD.id = {id}
             BEGIN SELECT RAISE(ABORT, 'a broken row'); END;
             CREATE TRIGGER refuse_to_end BEFORE DELETE ON open_deliveries WHEN OLD.id = {id}
             BEGIN SELECT RAISE(ABORT, 'a broken row'); END"
        ),
    };
    stage.conn.batch_execute(&statements).unwrap();
}

fn sorted(mut ids: Vec<DeliveryId>) -> Vec<DeliveryId> {
    ids.sort_unstable();
    ids
}

async fn a_refused_claim_names_the_rows_it_had_chosen(backend: Backend) {
    let mut stage = Stage::new(backend);
    let due = stage.accept_many(4);
    let later = {
        stage.advance(MICROSECOND);
        stage.accept().id
    };
    stage.advance(GRACE);
    refuse_changes(&mut stage, due[2]);
    let now = stage.now;
    let claim = |stage: &mut Stage, plan: &RelayPlan| {
        stage.conn.transaction(|tx| claim_due(tx, now, LEASE, ClaimId::new(now), plan))
    };
    let RowsRefused { rows, error } = claim(&mut stage, &plan(4)).unwrap_err();
    assert_eq!(sorted(rows), sorted(due.clone()));
    assert!(error.to_string().contains("a broken row") && !error.is_outage());
    assert_eq!(stage.count("open_deliveries WHERE claim_id IS NULL"), 5, "no row of the batch was claimed");
    // Stepping over one half of them shows which half contains it.
    let half = RelayPlan { stepped_over: due[2..].to_vec(), ..plan(10) };
    assert_eq!(ids(&claim(&mut stage, &half).unwrap().claimed), sorted(vec![due[0], due[1], later]));
    let RowsRefused { rows, .. } = claim(&mut stage, &plan(1)).unwrap_err();
    assert_eq!(rows, [due[2]]);
    let rest = RelayPlan { stepped_over: rows, ..plan(10) };
    assert_eq!(ids(&claim(&mut stage, &rest).unwrap().claimed), [due[3]]);
}

async fn a_refused_recovery_names_the_rows_it_had_found(backend: Backend) {
    let mut stage = Stage::new(backend);
    let held: Vec<_> = (0..3).map(|_| stage.claimed().held.delivery_id).collect();
    stage.advance(LEASE);
    refuse_changes(&mut stage, held[0]);
    let now = stage.now;
    let mut recover = |stepped_over: &[DeliveryId]| {
        let settle = |held: &HeldAttempt| lost(held, Settlement::Failed);
        stage.conn.transaction(|tx| recover_leases(tx, now, 10, stepped_over, false, settle))
    };
    let RowsRefused { rows, error } = recover(&[]).unwrap_err();
    assert_eq!(sorted(rows), sorted(held.clone()));
    assert!(error.to_string().contains("a broken row"));
    assert_eq!(recover(&held[..1]).unwrap().len(), 2);
    assert_eq!(stage.count("attempts"), 2);
}

async fn recovery_steps_over_the_given_deliveries(backend: Backend) {
    let mut stage = Stage::new(backend);
    let held: Vec<_> = (0..4)
        .map(|_| {
            stage.advance(MICROSECOND);
            stage.claimed().held.delivery_id
        })
        .collect();
    stage.advance(LEASE);
    let now = stage.now;
    let settle = |held: &HeldAttempt| lost(held, Settlement::RetryAt(now));
    let recovered =
        stage.conn.transaction(|tx| recover_leases(tx, now, 2, &held[..1], false, settle)).unwrap();
    let found: Vec<_> = recovered.iter().map(|(held, ..)| held.delivery_id).collect();
    assert_eq!(found, held[1..3], "oldest first, up to its limit");
    for (held, result, effect) in recovered {
        assert_eq!((held.delivery_id, effect), (result.delivery_id, Effect::Recorded));
        let Some(Failure { detail, .. }) = result.record.failure else { panic!("{result:?}") };
        assert_eq!(detail, "the lease ended");
    }
}

/// SQLite has one writer at a time, so no rows are locked.
#[test]
fn on_postgresql_recovery_skips_rows_locked_by_another_transaction() {
    let mut stage = Stage::new(Backend::Postgres);
    let [locked, free] = [0, 1].map(|_| stage.claimed());
    stage.advance(LEASE);
    let lock = stage.database.lock(&format!("open_deliveries WHERE id = '{}'", locked.held.delivery_id));
    assert_eq!(stage.recover(Settlement::Failed), [free.held]);
    drop(lock);
    assert_eq!(stage.recover(Settlement::Failed), std::slice::from_ref(&locked.held));
    assert_eq!(stage.finish_one(succeeded(&locked)), Effect::Late { closed: false });
}

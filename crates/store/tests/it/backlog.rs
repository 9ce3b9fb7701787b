//! What is measured of the backlog, and when attempts were due.

use std::time::Duration;

use ::store::{Backlog, MOST_COUNTED, backlog};
use testkit::Backend;

use crate::stage::{GRACE, MICROSECOND, Stage, URL, plan, retried, start, succeeded};

testkit::on_both_backends!(
    deliveries_are_due_once_their_doorbell_is_overdue_and_in_flight_until_they_end,
    held_destinations_are_left_out_however_much_waits_for_them,
    a_claim_tells_since_when_its_attempts_were_due,
);

const OTHER_URL: &str = "https://other.example.com/";
const MINUTE: Duration = Duration::from_secs(60);

fn measured(stage: &mut Stage) -> Backlog {
    let now = stage.now;
    backlog(&mut stage.conn, now).unwrap()
}

async fn deliveries_are_due_once_their_doorbell_is_overdue_and_in_flight_until_they_end(backend: Backend) {
    let mut stage = Stage::new(backend);
    assert_eq!(measured(&mut stage), Backlog::default());
    stage.accept();
    stage.advance(GRACE - MICROSECOND);
    assert_eq!(measured(&mut stage), Backlog::default());
    stage.accept();
    stage.advance(MICROSECOND);
    let due = Backlog { due: 1, oldest_due_at: Some(start()), ..Backlog::default() };
    assert_eq!(measured(&mut stage), due, "since its acceptance");
    stage.advance(MINUTE);
    assert_eq!(measured(&mut stage), Backlog { due: 2, ..due });
    let claimed = stage.claim_due(10);
    assert_eq!(measured(&mut stage), Backlog { in_flight: 2, ..Backlog::default() });
    stage.finish_one(succeeded(&claimed[0]));
    assert_eq!(measured(&mut stage), Backlog { in_flight: 1, ..Backlog::default() });
}

async fn held_destinations_are_left_out_however_much_waits_for_them(backend: Backend) {
    let mut stage = Stage::new(backend);
    stage.hold(stage.now + 10 * MINUTE);
    let held = stage.accept();
    stage.advance(MINUTE);
    assert_eq!(measured(&mut stage), Backlog { held_destinations: 1, ..Backlog::default() });
    // More than are counted, all due for longer than the other destination's only delivery.
    stage.copy(held.id, MOST_COUNTED, 1);
    stage.sql("UPDATE open_deliveries SET destination = (SELECT destination FROM destinations)").unwrap();
    let accepted_at = stage.now;
    stage.accept_to(OTHER_URL);
    stage.advance(MINUTE);
    let expected =
        Backlog { due: 1, oldest_due_at: Some(accepted_at), held_destinations: 1, ..Backlog::default() };
    assert_eq!(measured(&mut stage), expected);
}

async fn a_claim_tells_since_when_its_attempts_were_due(backend: Backend) {
    let mut stage = Stage::new(backend);
    let accepted_at = stage.now;
    let delivery = stage.accept();
    stage.advance(Duration::from_millis(5));
    let claimed = stage.claim_one(delivery.id, 1);
    assert_eq!(claimed.due_at, Some(accepted_at));
    assert_eq!((claimed.held.created_at, claimed.held.is_automatic), (accepted_at, false));
    let retry_at = stage.now + MINUTE;
    stage.finish_one(retried(&claimed, retry_at));
    stage.advance(2 * MINUTE);
    let again = stage.poll(&plan(10)).claimed.remove(0);
    assert_eq!((again.held.attempt, again.due_at), (2, Some(retry_at)));
    assert_eq!(stage.destination(URL), again.held.destination);
}

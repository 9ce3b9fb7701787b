//! Stored values are read back unchanged: times to the microsecond, ids, JSON texts, payload bytes.

use ::store::{
    Deliver, DeliveryParts, claimed_under, create_organization, create_secret, create_token, find_delivery,
    find_organization, record_run,
};
use contracts::{ClaimId, Delivery, FailureReason, JsonText, OrgId, RunId, Scopes, Timestamp};
use engine::Settlement;
use testkit::{Backend, keyring, terminal_run};
use uuid::Uuid;

use crate::stage::{
    GRACE, LEASE, POLICY, Stage, URL, as_read_back, finished, new_run, retried, succeeded, update,
};

testkit::on_both_backends!(
    every_time_of_a_run_keeps_its_microseconds_over_all_years,
    every_time_of_a_delivery_keeps_its_microseconds,
    times_of_organizations_tokens_and_secrets_keep_their_microseconds,
    ids_keep_all_their_bits,
    json_texts_come_back_as_they_were_normalised,
    a_payload_keeps_any_bytes,
    parts_of_a_delivery_that_are_not_requested_are_not_read,
);

async fn every_time_of_a_run_keeps_its_microseconds_over_all_years(backend: Backend) {
    let mut stage = Stage::new(backend);
    for moment in [
        "0001-01-01T00:00:00Z",
        "0099-12-31T23:59:59.999999Z",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00Z",
        "1999-12-31T23:59:59.999999Z",
        "2026-03-01T12:00:00.000001Z",
        "9999-12-31T23:59:59.999999Z",
    ] {
        let moment = Timestamp::parse(moment).unwrap();
        let mut update = terminal_run(URL);
        update.created_at = Some(moment);
        update.started_at = Some(moment);
        update.completed_at = Some(moment);
        let run = new_run();
        record_run(
            &mut stage.conn,
            moment,
            &POLICY,
            Deliver::Never,
            (stage.org, run),
            &update,
            &"req".into(),
        )
        .unwrap();
        let run = stage.stored_run(run);
        assert_eq!([run.created_at, run.updated_at], [moment; 2]);
        assert_eq!([run.started_at, run.completed_at], [Some(moment); 2]);
    }
}

async fn every_time_of_a_delivery_keeps_its_microseconds(backend: Backend) {
    let mut stage = Stage::new(backend);
    let accepted_at = stage.now;
    let delivery = stage.accept();
    assert_eq!(delivery, stage.delivery(delivery.id));
    assert_eq!(
        (delivery.created_at, delivery.updated_at, delivery.next_attempt_at, delivery.completed_at),
        (accepted_at, accepted_at, Some(accepted_at), None)
    );
    assert_eq!(stage.micros("open_deliveries", "wake_at"), (accepted_at + GRACE).as_micros());

    stage.advance(std::time::Duration::from_micros(1_000_001));
    let (claimed_at, claimed) = (stage.now, stage.claim_one(delivery.id, 1));
    assert_eq!(claimed.held.claimed_at, claimed_at);
    assert_eq!(stage.micros("open_deliveries", "claimed_at"), claimed_at.as_micros());
    assert_eq!(stage.micros("open_deliveries", "wake_at"), (claimed_at + LEASE).as_micros());
    assert_eq!(stage.delivery(delivery.id).updated_at, claimed_at);

    let retry_at = stage.now + std::time::Duration::from_micros(10_000_003);
    stage.advance(std::time::Duration::from_micros(7));
    stage.finish_one(retried(&claimed, retry_at));
    let waiting = stage.delivery(delivery.id);
    assert_eq!((waiting.next_attempt_at, waiting.updated_at), (Some(retry_at), stage.now));
    assert_eq!(waiting.attempts[0].created_at, claimed_at);
    assert_eq!(stage.micros("open_deliveries", "wake_at"), retry_at.as_micros());

    stage.now = retry_at;
    let claimed = stage.claim_one(delivery.id, 2);
    stage.finish_one(succeeded(&claimed));
    let done = stage.delivery(delivery.id);
    assert_eq!((done.completed_at, done.updated_at), (Some(retry_at), retry_at));
}

async fn times_of_organizations_tokens_and_secrets_keep_their_microseconds(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (org, now) = (stage.org, stage.now);
    assert_eq!(find_organization(&mut stage.conn, org).unwrap().unwrap().created_at, now);
    create_token(&mut stage.conn, now, org, Scopes::All, None, None).unwrap();
    assert_eq!(stage.micros("api_tokens", "created_at"), now.as_micros());
    create_secret(&mut stage.conn, now, &keyring(), org, None).unwrap();
    assert_eq!(stage.micros("signing_secrets", "created_at"), now.as_micros());
    assert_eq!(stage.micros("signing_secrets", "updated_at"), now.as_micros());
}

async fn ids_keep_all_their_bits(backend: Backend) {
    let mut stage = Stage::new(backend);
    let made = create_organization(&mut stage.conn, stage.now, "Ünïcode & söns 株式会社").unwrap();
    assert_eq!(find_organization(&mut stage.conn, made.id).unwrap(), Some(made));
    assert_eq!(find_organization(&mut stage.conn, OrgId(Uuid::max())).unwrap(), None);
    for bits in [0, u128::MAX, 1, 1 << 127, 0x00ff_0000_0000_0000_ff00_0000_0000_0027] {
        let run = RunId(Uuid::from_u128(bits));
        stage.record(run, &update(r#"{"status_code": "queued"}"#));
        assert_eq!(stage.stored_run(run).id, run);
    }
    let delivery = stage.accept();
    let under = ClaimId(Uuid::from_u128(u128::MAX - 1));
    let jobs = [stage.job(delivery.id, 1)];
    let claimed = ::store::claim_jobs(&mut stage.conn, stage.now, LEASE, under, &jobs).unwrap();
    assert_eq!(
        (claimed[0].held.claim_id, claimed[0].held.delivery_id, claimed[0].held.org_id),
        (under, delivery.id, stage.org)
    );
    let unknown = finished(&claimed[0], Some(FailureReason::Timeout), Settlement::Failed);
    let attempt = unknown.record.id;
    stage.finish_one(unknown);
    assert_eq!(stage.delivery(delivery.id).attempts[0].id, attempt);
}

async fn json_texts_come_back_as_they_were_normalised(backend: Backend) {
    let mut stage = Stage::new(backend);
    let output = r#"{"nul": "a\u0000b", "b": 1, "a": [1.0, 1e16, -0, 123456789012345678901234567890], "é": "\ud83e\udd80\u2028"}"#;
    let body = format!(
        r#"{{"status_code": "succeeded", "output": {output}, "metadata": {{"z": null, "a": "\u007f\\"}}, "callback_url": "{URL}"}}"#
    );
    let update = update(&body);
    let run = new_run();
    stage.record(run, &update);
    let stored = stage.stored_run(run);
    assert_eq!((&stored.output, &stored.metadata), (&update.output, &update.metadata));
    let text = stored.output.as_ref().map(JsonText::as_str).unwrap();
    assert!(!text.contains('\0') && text.contains(r"a\u0000b"), "{text}");
    assert!(
        text.contains("123456789012345678901234567890") && text.find("\"b\"") < text.find("\"a\""),
        "{text}"
    );
}

async fn a_payload_keeps_any_bytes(backend: Backend) {
    let mut stage = Stage::new(backend);
    stage.accept();
    let every_byte: Vec<u8> = (0..=255).collect();
    let hex = hex::encode(&every_byte);
    stage
        .sql(&match backend {
            Backend::Postgres => format!(r"UPDATE deliveries SET payload = '\x{hex}'"),
            Backend::Sqlite => format!("UPDATE deliveries SET payload = X'{hex}'"),
        })
        .unwrap();
    stage.advance(GRACE);
    let claimed = stage.claim_due(1);
    assert_eq!(claimed[0].payload, every_byte);
    assert_eq!(claimed_under(&mut stage.conn, claimed[0].held.claim_id).unwrap(), as_read_back(claimed));
}

async fn parts_of_a_delivery_that_are_not_requested_are_not_read(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.finish_one(succeeded(&claimed));
    let (org, all) = (stage.org, stage.delivery(claimed.held.delivery_id));
    let mut read = |parts| find_delivery(&mut stage.conn, org, all.id, parts).unwrap().unwrap();
    let without_payload = Delivery { payload_bytes: String::new(), ..all.clone() };
    assert_eq!(read(DeliveryParts { payload: false, ..DeliveryParts::ALL }), without_payload);
    let without_attempts = Delivery { attempts: Vec::new(), ..all.clone() };
    assert_eq!(read(DeliveryParts { attempts: false, ..DeliveryParts::ALL }), without_attempts);
    let mut without_timing = all.clone();
    assert!(without_timing.attempts[0].timing.take().is_some());
    assert_eq!(read(DeliveryParts::SHOWN), without_timing);
}

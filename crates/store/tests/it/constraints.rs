//! The schema enforces the state machine: it rejects invalid rows from any client.

use std::collections::BTreeSet;

use ::store::{AnyConnection, insert_delivery};
use contracts::{Delivery, DeliveryId, FailureReason};
use diesel::Connection;
use diesel::result::{DatabaseErrorKind, Error};
use engine::{AttemptResult, HoldChange};
use strum::VariantArray;
use testkit::{Backend, keyring};

use crate::stage::{Stage, failed, new_run, retried};

testkit::on_both_backends!(
    every_named_check_rejects_what_it_names,
    a_run_has_at_most_one_open_and_one_automatic_delivery,
    an_organization_has_at_most_one_current_secret,
    an_attempt_number_is_unique_within_its_delivery,
    rows_need_the_rows_they_refer_to,
    every_failure_reason_is_accepted,
    a_part_is_erased_once,
);

/// Updates of one row that violate exactly one CHECK.
const BREACHES: &[(&str, &str)] = &[
    ("token_is_kept_as_sha256", "api_tokens SET token_sha256 = substr(token_sha256, 1, 31)"),
    ("current_secret_is_enabled", "signing_secrets SET disabled_at = created_at"),
    ("run_status_code", "runs SET status_code = 'done'"),
    ("run_status_code", "runs SET status_code = 'Succeeded'"),
    ("terminal_run_has_completed_at", "runs SET completed_at = NULL"),
    ("waits_or_is_claimed", "open_deliveries SET next_attempt_at = NULL"),
    ("waits_or_is_claimed", "open_deliveries SET claim_id = id, claimed_at = created_at"),
    ("claim_has_a_time", "open_deliveries SET next_attempt_at = NULL, claim_id = id"),
    ("claim_has_a_time", "open_deliveries SET claimed_at = created_at"),
    ("attempts_within_budget", "open_deliveries SET attempt_count = max_attempts + 1"),
    ("attempts_within_budget", "open_deliveries SET attempt_count = -1"),
    ("attempts_within_budget", "open_deliveries SET attempt_count = 0, max_attempts = 0"),
    ("ended_status_code", "ended_deliveries SET status_code = 'pending', failure_reason_code = NULL"),
    ("what_failed_is_explained", "ended_deliveries SET failure_reason_code = NULL"),
    ("what_failed_is_explained", "ended_deliveries SET status_code = 'succeeded'"),
    ("ended_failure_reason_code", "ended_deliveries SET failure_reason_code = 'tired'"),
    ("attempts_count_from_1", "attempts SET attempt_number = 0"),
    ("failed_attempt_is_explained", "attempts SET failure_detail = NULL"),
    ("failed_attempt_is_explained", "attempts SET failure_reason_code = NULL"),
    (
        "attempt_has_an_outcome",
        "attempts SET status_code = NULL, failure_reason_code = NULL, failure_detail = NULL",
    ),
    ("attempt_failure_reason_code", "attempts SET failure_reason_code = 'tired'"),
    ("probe_has_a_claim", "destinations SET probing_until = held_until"),
    ("probe_has_a_claim", "destinations SET probe_claim_id = org_id"),
];

async fn every_named_check_rejects_what_it_names(backend: Backend) {
    let mut stage = Stage::new(backend);
    ::store::create_token(&mut stage.conn, stage.now, stage.org, contracts::Scopes::All, None, None).unwrap();
    ::store::create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap();
    let [claimed, ended] = [0, 1].map(|_| stage.claimed());
    stage.finish_one(failed(&ended));
    let hold = HoldChange::HoldUntil(stage.now);
    stage.finish_one(AttemptResult { hold, ..retried(&claimed, stage.now) });
    for (name, breach) in BREACHES {
        let refused = stage.sql(&format!("UPDATE {breach}"));
        let Err(Error::DatabaseError(DatabaseErrorKind::CheckViolation, info)) = refused else {
            panic!("{name} refuses {breach}, not {refused:?}");
        };
        assert!(info.message().contains(name), "{name} refuses {breach}, not: {}", info.message());
    }
    assert_eq!(
        BREACHES.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(),
        named(&mut stage)
    );
}

/// Returns the CHECKs of the migrated schema.
fn named(stage: &mut Stage) -> BTreeSet<String> {
    let texts: Vec<String> = match stage.conn {
        AnyConnection::Postgres(_) => stage.texts(
            "SELECT 'CONSTRAINT ' || conname || ' CHECK' FROM pg_constraint
             WHERE contype = 'c' AND connamespace = 'public'::regnamespace",
        ),
        AnyConnection::Sqlite(_) => stage.texts("SELECT sql FROM sqlite_schema WHERE type = 'table'"),
    };
    let text = texts.join(" ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let checks = words.windows(3).filter(|words| words[0] == "CONSTRAINT" && words[2].starts_with("CHECK"));
    // No update above violates these CHECKs; the tests of idempotency and erasing cover them.
    let elsewhere = ["request_is_kept_as_sha256", "erased_part", "part_is_kept_as_sha256"];
    checks.map(|words| words[1].to_owned()).filter(|name| !elsewhere.contains(&name.as_str())).collect()
}

fn refused_as<T: std::fmt::Debug>(kind: &DatabaseErrorKind, refused: diesel::QueryResult<T>) {
    let found = match refused.unwrap_err() {
        Error::DatabaseError(found, _) => found,
        other => panic!("{kind:?}, not {other:?}"),
    };
    assert_eq!(format!("{found:?}"), format!("{kind:?}"));
}

async fn a_run_has_at_most_one_open_and_one_automatic_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let run = new_run();
    stage.record(run, &testkit::terminal_run(crate::stage::URL));
    let delivery = testkit::deliveries_of_run(&mut stage.conn, stage.org, run).unwrap().unwrap().remove(0);
    let another = |is_automatic| Delivery {
        id: DeliveryId::new(delivery.created_at),
        is_automatic,
        ..delivery.clone()
    };
    let (org, unique) = (stage.org, DatabaseErrorKind::UniqueViolation);
    refused_as(
        &unique,
        stage.conn.transaction(|tx| insert_delivery(tx, org, &another(false), &"req".into())),
    );
    let claimed = stage.claim_one(delivery.id, 1);
    stage.finish_one(failed(&claimed));
    refused_as(&unique, stage.conn.transaction(|tx| insert_delivery(tx, org, &another(true), &"req".into())));
    insert_delivery(&mut stage.conn, org, &another(false), &"req".into()).unwrap();
}

async fn an_organization_has_at_most_one_current_secret(backend: Backend) {
    let mut stage = Stage::new(backend);
    for _ in 0..2 {
        ::store::create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap();
    }
    refused_as(
        &DatabaseErrorKind::UniqueViolation,
        stage.sql("UPDATE signing_secrets SET is_current = true"),
    );
}

async fn an_attempt_number_is_unique_within_its_delivery(backend: Backend) {
    let mut stage = Stage::new(backend);
    let first = stage.claimed();
    stage.finish_one(retried(&first, stage.now));
    let second = stage.claim_one(first.held.delivery_id, 2);
    stage.finish_one(failed(&second));
    refused_as(&DatabaseErrorKind::UniqueViolation, stage.sql("UPDATE attempts SET attempt_number = 1"));
}

async fn rows_need_the_rows_they_refer_to(backend: Backend) {
    let mut stage = Stage::new(backend);
    let delivery = stage.accept();
    let foreign = DatabaseErrorKind::ForeignKeyViolation;
    // PostgreSQL would check each row with a separate statement, so there only the code ensures these
    // references.
    if backend == Backend::Sqlite {
        let other = stage.other_org();
        // The run exists, but in another organization.
        let elsewhere = Delivery { id: DeliveryId::new(stage.now), ..delivery };
        refused_as(&foreign, insert_delivery(&mut stage.conn, other, &elsewhere, &"req".into()));
        refused_as(&foreign, stage.sql("DELETE FROM runs"));
        let claimed = stage.claim_one(delivery.id, 1);
        stage.finish_one(failed(&claimed));
        refused_as(&foreign, stage.sql("DELETE FROM deliveries"));
    }
    ::store::create_token(&mut stage.conn, stage.now, stage.org, contracts::Scopes::All, None, None).unwrap();
    refused_as(&foreign, stage.sql("DELETE FROM organizations"));
    refused_as(
        &foreign,
        stage.sql(
            "INSERT INTO destinations (destination, org_id, held_until, created_at, updated_at)
             SELECT 1, id, created_at, created_at, created_at FROM runs",
        ),
    );
}

async fn every_failure_reason_is_accepted(backend: Backend) {
    let mut stage = Stage::new(backend);
    let claimed = stage.claimed();
    stage.finish_one(failed(&claimed));
    for reason in FailureReason::VARIANTS {
        for table in ["attempts", "ended_deliveries"] {
            stage.sql(&format!("UPDATE {table} SET failure_reason_code = '{reason}'")).unwrap();
        }
    }
}

async fn a_part_is_erased_once(backend: Backend) {
    let mut stage = Stage::new(backend);
    ::store::create_token(&mut stage.conn, stage.now, stage.org, contracts::Scopes::All, None, None).unwrap();
    stage.accept();
    let mut insert = |delivery: &str, attempt: &str, part: &str| {
        stage.sql(&format!(
            "INSERT INTO erased_parts (org_id, run_id, delivery_id, attempt_number, part, sha256, size)
             SELECT org_id, run_id, {delivery}, {attempt}, '{part}', token, 1 FROM deliveries,
                 (SELECT token_sha256 AS token FROM api_tokens LIMIT 1) AS t"
        ))
    };
    for (delivery, attempt, part) in [
        ("NULL", "NULL", "output"),
        ("id", "NULL", "payload"),
        ("id", "1", "response_body"),
        ("id", "2", "response_body"),
    ] {
        insert(delivery, attempt, part).unwrap();
        refused_as(&DatabaseErrorKind::UniqueViolation, insert(delivery, attempt, part));
    }
    insert("NULL", "NULL", "metadata").unwrap();
}

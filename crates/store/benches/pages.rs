//! How long a page of 50 deliveries takes with a long history: `cargo bench -p store --bench pages [-- DELIVERIES]`.
//!
//! An organization's deliveries, a million unless told another number, each with a payload of 1 KiB and one attempt.
//! One in ten thousand has failed, of three hosts one is rare, one in a thousand was asked for by a client, eight are
//! open. Another organization has three tenths as many, all of one moment.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::time::{Duration, Instant};

use contracts::{DeliveryStatus, FailureReason, OrgId, RunId, Timestamp};
use diesel::connection::SimpleConnection;
use store::{
    AnyConnection, DeliveryFilter, DeliveryParts, PageRequest, Position, SortOrder, create_organization,
    deliveries_page,
};
use testkit::{Backend, TestDatabase};
use uuid::Uuid;

/// 2026-01-01, in microseconds since 1970.
const START: i64 = 1_767_225_600_000_000;
const PAGES: usize = 50;
const FIRST: PageRequest = PageRequest { limit: 50, ..PageRequest::NEWEST };

fn main() {
    let count = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000_000);
    println!("{count} deliveries, {PAGES} pages of 50 each, in ms");
    for backend in [Backend::Postgres, Backend::Sqlite] {
        let database = TestDatabase::new(backend);
        let mut conn = database.url().connect().unwrap();
        let mut organization =
            |name| create_organization(&mut conn, Timestamp::from_micros(START), name).unwrap().id;
        let (org, simultaneous) = (organization("bench"), organization("of one moment"));
        let (first, one_moment) = (1 << 32, 1 << 33);
        let filling = Instant::now();
        fill(&mut conn, &History { org, count, first, micros_apart: 1_000 });
        let equal = History { org: simultaneous, count: count * 3 / 10, first: one_moment, micros_apart: 0 };
        fill(&mut conn, &equal);
        println!("\n{backend:?}, filled in {:.0} s", filling.elapsed().as_secs_f64());
        println!("| filter | median | max | rows |\n|---|---|---|---|");
        let cases = cases(count).into_iter().map(|(name, filter, request)| (org, name, filter, request));
        let (created_at, id) = (Timestamp::from_micros(START), number(one_moment + equal.count / 2));
        let of_one_moment = [
            (
                "of one moment, from the middle",
                PageRequest { from: Some(Position { created_at, id }), ..FIRST },
            ),
            (
                "of one moment, back from the middle",
                PageRequest { from: Some(Position { created_at, id }), backwards: true, ..FIRST },
            ),
        ];
        let of_one_moment =
            of_one_moment.map(|(name, request)| (simultaneous, name, DeliveryFilter::default(), request));
        for (org, name, filter, request) in cases.chain(of_one_moment) {
            let (mut took, mut rows) = (Vec::with_capacity(PAGES), 0);
            for _ in 0..PAGES {
                let began = Instant::now();
                rows = deliveries_page(&mut conn, org, &filter, &request, DeliveryParts::SHOWN)
                    .unwrap()
                    .rows
                    .len();
                took.push(began.elapsed());
            }
            took.sort_unstable();
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            println!("| {name} | {:.2} | {:.2} | {rows} |", ms(took[PAGES / 2]), ms(took[PAGES - 1]));
        }
    }
}

fn cases(count: i64) -> Vec<(&'static str, DeliveryFilter, PageRequest)> {
    let any = DeliveryFilter::default;
    let first = FIRST;
    let at = |i: i64| Timestamp::from_micros(START + i * 1_000);
    let deep = Some(Position { created_at: at(count / 2), id: Uuid::nil() });
    let host = |host: &str| DeliveryFilter { callback_host: Some(host.into()), ..any() };
    let failed = DeliveryFilter { status_code: Some(DeliveryStatus::Failed), ..any() };
    let succeeded = DeliveryFilter { status_code: Some(DeliveryStatus::Succeeded), ..any() };
    let pending = DeliveryFilter { status_code: Some(DeliveryStatus::Pending), ..any() };
    let reason = |reason| DeliveryFilter { failure_reason_code: Some(reason), ..any() };
    let automatic = |is| DeliveryFilter { is_automatic: Some(is), ..any() };
    vec![
        ("none", any(), first),
        ("none, oldest first", any(), PageRequest { order: SortOrder::Ascending, ..first }),
        ("none, from the middle", any(), PageRequest { from: deep, ..first }),
        ("none, back from the middle", any(), PageRequest { from: deep, backwards: true, ..first }),
        ("500 a page", any(), PageRequest { limit: 500, ..first }),
        ("status_code=succeeded", succeeded.clone(), first),
        ("status_code=failed (rare)", failed.clone(), first),
        ("status_code=pending (8)", pending, first),
        ("run_id", DeliveryFilter { run_id: Some(RunId(number(count / 2))), ..any() }, first),
        (
            "run_id + status + host + is_automatic",
            DeliveryFilter {
                run_id: Some(RunId(number(count / 2))),
                is_automatic: Some(true),
                callback_host: Some("hooks.example.com".into()),
                ..succeeded.clone()
            },
            first,
        ),
        ("callback_host, common", host("hooks.example.com"), first),
        ("callback_host, rare", host("rare.example.com"), first),
        ("callback_host, none", host("nowhere.example.com"), first),
        ("is_automatic=true", automatic(true), first),
        ("is_automatic=false (rare)", automatic(false), first),
        ("failure_reason_code=http_error", reason(FailureReason::HttpError), first),
        ("failure_reason_code=timeout (none)", reason(FailureReason::Timeout), first),
        ("created_after the end", any(), PageRequest { created_after: Some(at(2 * count)), ..first }),
        ("created_before the middle", any(), PageRequest { created_before: Some(at(count / 2)), ..first }),
        (
            "host + failed",
            DeliveryFilter { status_code: Some(DeliveryStatus::Failed), ..host("other.example.com") },
            first,
        ),
        (
            "host + is_automatic=false, from the middle",
            DeliveryFilter { is_automatic: Some(false), ..host("hooks.example.com") },
            PageRequest { from: deep, ..first },
        ),
        ("failed + is_automatic=false", DeliveryFilter { is_automatic: Some(false), ..failed }, first),
        (
            "host + succeeded, a range of time",
            DeliveryFilter { callback_host: Some("other.example.com".into()), ..succeeded },
            PageRequest { created_after: Some(at(count / 4)), created_before: Some(at(count / 2)), ..first },
        ),
    ]
}

/// An id made of a number: that of the run of delivery number `i`, for one.
fn number(i: i64) -> Uuid {
    Uuid::from_u128(u128::try_from(i).unwrap())
}

/// An organization's deliveries: their ids are the numbers behind `first`.
struct History {
    org: OrgId,
    count: i64,
    first: i64,
    micros_apart: i64,
}

/// What differs between the engines: numbers 1 to `count`, ids made of numbers, and moments.
struct Words {
    numbers: String,
    id: fn(&str) -> String,
    moment: fn(&str) -> String,
    bytes: &'static str,
}

fn fill(conn: &mut AnyConnection, history: &History) {
    let History { org, count, first, micros_apart } = history;
    let words = match conn {
        AnyConnection::Postgres(_) => Words {
            numbers: format!("generate_series(1, {count}) AS i"),
            id: |number| format!("lpad(to_hex({number}), 32, '0')::uuid"),
            moment: |micros| format!("to_timestamp(({micros}) / 1000000.0)"),
            bytes: "convert_to(",
        },
        AnyConnection::Sqlite(_) => Words {
            numbers: format!(
                "(WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
            ),
            id: |number| format!("unhex(printf('%032x', {number}))"),
            moment: |micros| format!("({micros})"),
            bytes: "cast(",
        },
    };
    let is_postgres = matches!(conn, AnyConnection::Postgres(_));
    let org = match is_postgres {
        true => format!("'{}'::uuid", org.0),
        false => format!("x'{}'", org.0.simple()),
    };
    let Words { numbers, id, moment, bytes } = words;
    let now = moment(&format!("{START} + i * {micros_apart}"));
    let (run, payload_end) = (id("i"), if is_postgres { ", 'UTF8')" } else { " AS blob)" });
    let delivery = id(&format!("i + {first}"));
    let is_failed = "i % 10000 = 0";
    let host =
        "CASE WHEN i % 20000 = 1 THEN 'rare' WHEN i % 2 = 0 THEN 'hooks' ELSE 'other' END || '.example.com'";
    let is_open = format!("i > {count} - 8");
    let padding = "x".repeat(1000);
    let statements = [
        format!(
            "INSERT INTO runs (org_id, id, status_code, created_at, completed_at, callback_url, updated_at)
             SELECT {org}, {run}, 'succeeded', {now}, {now}, 'https://hooks.example.com/', {now} FROM {numbers}"
        ),
        format!(
            "INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, is_automatic, max_attempts, request_id,
                 created_at)
             SELECT {delivery}, {org}, {run}, 'https://hooks.example.com/',
                 {bytes}'{{\"padding\": \"{padding}\"}}'{payload_end}, i % 1000 <> 0, 8, 'bench', {now}
             FROM {numbers}"
        ),
        format!(
            "INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes,
                 max_attempts, attempt_count, next_attempt_at, wake_at, created_at, updated_at)
             SELECT {delivery}, {org}, {run}, 1, {host}, i % 1000 <> 0, 1014, 8, 1, {now}, {now}, {now}, {now}
             FROM {numbers} WHERE {is_open}"
        ),
        format!(
            "INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code, failure_reason_code,
                 failure_detail, attempt_count, created_at, completed_at)
             SELECT {delivery}, {org}, {host}, i % 1000 <> 0,
                 CASE WHEN {is_failed} THEN 'failed' ELSE 'succeeded' END,
                 CASE WHEN {is_failed} THEN 'http_error' END, NULL, 1, {now}, {now}
             FROM {numbers} WHERE NOT ({is_open})"
        ),
        format!(
            "INSERT INTO attempts (id, delivery_id, attempt_number, status_code, response_body, response_time_ms,
                 created_at)
             SELECT {delivery}, {delivery}, 1, 200, 'ok', 12, {now} FROM {numbers}"
        ),
    ];
    conn.batch_execute("BEGIN").unwrap();
    for statement in statements {
        conn.batch_execute(&statement).unwrap();
    }
    conn.batch_execute("COMMIT").unwrap();
    if is_postgres {
        conn.batch_execute("VACUUM ANALYZE").unwrap(); // as autovacuum would have by then
    }
}

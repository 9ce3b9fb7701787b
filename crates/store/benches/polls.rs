//! How long the relay's polls take with a large backlog: `cargo bench -p store --bench polls [-- DELIVERIES]`.
//!
//! A million due deliveries, unless told another number, over 1, 100 and 10,000 destinations; then behind 100,000 that wait
//! for a full or a held destination, and among 10,000 destinations that have nothing due yet. Each poll has room for 256
//! attempts, 32 of one destination, and all of them succeed at once. PostgreSQL only: nothing of this is SQLite's.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use contracts::{AttemptId, ClaimId, Destination, OrgId, Timestamp};
use diesel::Connection;
use diesel::connection::SimpleConnection;
use engine::{ByteRoom, Claimed, Measured, Outcome, RelayPlan, Response, RetryPolicy};
use store::{AnyConnection, claim_due, create_organization, finish};
use testkit::{Backend, TestDatabase};

/// 2026-01-01, in microseconds since 1970.
const START: i64 = 1_767_225_600_000_000;
const LEASE: Duration = Duration::from_secs(60);
/// The number of the destination that stands in front of all others.
const FIRST: i64 = -1;

fn main() {
    let count = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(1_000_000);
    let database = TestDatabase::new(Backend::Postgres);
    let mut conn = database.url().connect().unwrap();
    let start = Timestamp::from_micros(START);
    let org = create_organization(&mut conn, start, "bench").unwrap().id;
    conn.batch_execute(&format!(
        "INSERT INTO runs (org_id, id, status_code, created_at, completed_at, callback_url, updated_at)
         SELECT '{}', lpad(to_hex(i), 32, '0')::uuid, 'succeeded', now(), now(), 'https://hooks.example.com/', now()
         FROM generate_series(1, {count}) AS i",
        org.0
    ))
    .unwrap();
    println!("| {count} deliveries | polls | median | max | finishing, median | each served once after |");
    println!("|---|---|---|---|---|---|");
    let mut bench = Bench { conn, org, now: start + Duration::from_secs(3600) };
    for destinations in [1, 100, 10_000] {
        bench.fill(&[Part { count, destination: &hash(&format!("i % {destinations}")), due: 0 }]);
        bench.run(&format!("all due, {destinations} destinations"), destinations, &HashMap::new());
    }
    let (in_front, hundred) = (FIRST.to_string(), hash("i % 100"));
    let behind = [
        Part { count: count / 10, destination: &in_front, due: 0 },
        Part { count: 1_000, destination: &hundred, due: 1 },
    ];
    bench.fill(&behind);
    let full = HashMap::from([(Destination::from(FIRST), 0)]);
    bench.run("100 destinations behind a full one", 100, &full);
    bench.fill(&behind);
    bench.hold();
    bench.run("100 destinations behind a held one", 100, &HashMap::new());
    bench.fill(&[
        Part { count: count / 10, destination: &hash("i % 10000"), due: 7200 },
        Part { count: 1_000, destination: &hash("10000 + i % 100"), due: 0 },
    ]);
    bench.run("100 destinations among 10,000 that wait", 100, &HashMap::new());
}

/// Deliveries to a destination by their number `i`, due so many seconds after the start.
struct Part<'a> {
    count: i64,
    destination: &'a str,
    due: i64,
}

/// Spread like the hashes that destinations are.
fn hash(number: &str) -> String {
    format!("hashint8extended({number}, 0)")
}

struct Bench {
    conn: AnyConnection,
    org: OrgId,
    now: Timestamp,
}

impl Bench {
    /// Replaces all deliveries.
    fn fill(&mut self, parts: &[Part<'_>]) {
        self.conn.batch_execute("TRUNCATE deliveries, open_deliveries, attempts, destinations").unwrap();
        let mut from = 1;
        for Part { count, destination, due } in parts {
            let due = format!("to_timestamp({START} / 1000000 + {due}) + i * interval '1 microsecond'");
            self.conn
                .batch_execute(&format!(
                    "INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, is_automatic, max_attempts, request_id,
                         created_at)
                     SELECT lpad(to_hex(i), 32, '0')::uuid, '{org}', lpad(to_hex(i), 32, '0')::uuid,
                         'https://hooks.example.com/', convert_to(repeat('x', 1000), 'UTF8'), FALSE, 8, 'bench', {due}
                     FROM generate_series({from}, {from} + {count} - 1) AS i;
                     INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes,
                         max_attempts, attempt_count, next_attempt_at, wake_at, created_at, updated_at)
                     SELECT lpad(to_hex(i), 32, '0')::uuid, '{org}', lpad(to_hex(i), 32, '0')::uuid, {destination},
                         'hooks.example.com', FALSE, 1000, 8, 0, {due}, {due}, {due}, {due}
                     FROM generate_series({from}, {from} + {count} - 1) AS i",
                    org = self.org.0
                ))
                .unwrap();
            from += count;
        }
        self.conn.batch_execute("VACUUM ANALYZE").unwrap(); // as autovacuum would have by then
    }

    fn hold(&mut self) {
        self.conn
            .batch_execute(&format!(
                "INSERT INTO destinations (destination, org_id, held_until, created_at, updated_at)
                 SELECT {FIRST}, id, created_at + interval '1 day', created_at, created_at FROM organizations"
            ))
            .unwrap();
    }

    /// Looks until that many destinations were served, at least 30 times.
    fn run(&mut self, name: &str, destinations: usize, rooms: &HashMap<Destination, usize>) {
        let mut plan = RelayPlan {
            room: 256,
            bytes: ByteRoom { free: u64::MAX, is_idle: true, per_destination: u64::MAX },
            bytes_in_flight: HashMap::new(),
            ordinary_room: 32,
            rooms: rooms.clone(),
            cursor: None,
            has_backlog: false,
            stepped_over: Vec::new(),
            targets: Vec::new(),
        };
        let (mut polls, mut finishes) = (Vec::new(), Vec::new());
        let (mut served, mut served_after) = (HashSet::new(), None);
        let began = Instant::now();
        while (served_after.is_none() || polls.len() < 30) && polls.len() < 1000 {
            let (now, poll_began) = (self.now, Instant::now());
            let claim = |tx: &mut AnyConnection| claim_due(tx, now, LEASE, ClaimId::new(now), &plan);
            let due = self.conn.transaction(claim).unwrap();
            polls.push(poll_began.elapsed());
            (plan.cursor, plan.has_backlog) = (due.poll.cursor, due.poll.has_backlog);
            let finished = Instant::now();
            self.succeed(&due.claimed);
            finishes.push(finished.elapsed());
            served.extend(due.claimed.iter().map(|claimed| claimed.held.destination));
            if served.len() >= destinations && served_after.is_none() {
                served_after = Some((polls.len(), began.elapsed()));
            }
            self.now = self.now + Duration::from_micros(1);
        }
        let (count, after) = served_after.expect("every destination is served");
        polls.sort_unstable();
        finishes.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, max) = (ms(polls[polls.len() / 2]), ms(polls[polls.len() - 1]));
        let finishing = ms(finishes[finishes.len() / 2]);
        let total = polls.len();
        println!(
            "| {name} | {total} | {median:.1} ms | {max:.1} ms | {finishing:.1} ms | {count} polls, {:.0} ms |",
            ms(after)
        );
    }

    fn succeed(&mut self, claimed: &[Claimed]) {
        let policy = RetryPolicy {
            schedule: vec![Duration::from_secs(1)],
            jitter: 0.0,
            stop_on_gone: false,
            hold_cap: Duration::from_secs(900),
        };
        let now = self.now;
        let succeeded = |claimed: &Claimed| {
            let outcome =
                Outcome::Answered(Response { status: 200, body: "ok".to_owned(), retry_after: Vec::new() });
            policy.settle(&claimed.held, AttemptId::new(now), outcome, Measured::default(), now, 0.0)
        };
        let results: Vec<_> = claimed.iter().map(succeeded).collect();
        self.conn.transaction(|tx| finish(tx, now, &results).map(drop)).unwrap();
    }
}

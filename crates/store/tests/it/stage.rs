//! Test fixture: a database with one organization, a clock that only the test moves, and short methods for
//! the steps of a delivery.

use std::collections::HashMap;
use std::time::Duration;

use ::store::{
    AcceptPolicy, AnyConnection, Clock, DatabaseUrl, Deliver, DeliveryParts, DueClaim, RecordedRun,
    Redelivery, Store, StoreError, claim_due, claim_jobs, create_organization, find_delivery, find_run,
    finish, record_run, recover_leases, redeliver,
};
use contracts::{
    AttemptId, AttemptNumber, ClaimId, Delivery, DeliveryId, Destination, FailureReason, Job, OrgId,
    PayloadFormat, Run, RunId, RunUpdate, Timestamp, Timing,
};
use diesel::connection::TransactionManager;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use engine::{
    AttemptRecord, AttemptResult, ByteRoom, Claimed, Effect, Failure, HeldAttempt, HoldChange, RelayPlan,
    Settlement,
};
use testkit::{Backend, TestDatabase, terminal_run};
use uuid::Uuid;

pub(crate) const LEASE: Duration = Duration::from_secs(60);
/// How long the relay leaves a new delivery to its doorbell.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
pub(crate) const MICROSECOND: Duration = Duration::from_micros(1);
pub(crate) const URL: &str = "https://hooks.example.com/callbacks";
pub(crate) const POLICY: AcceptPolicy =
    AcceptPolicy { max_attempts: 3, payload_format: PayloadFormat::Python };

/// Initial time of the clock; its microseconds are not whole milliseconds.
pub(crate) fn start() -> Timestamp {
    Timestamp::parse("2026-03-01T12:00:00.123457Z").unwrap()
}

pub(crate) struct Stage {
    pub(crate) conn: AnyConnection,
    pub(crate) now: Timestamp,
    pub(crate) org: OrgId,
    // Last field, so that the connection is closed first.
    pub(crate) database: TestDatabase,
}

impl Stage {
    pub(crate) fn new(backend: Backend) -> Stage {
        let database = TestDatabase::new(backend);
        let mut conn = database.url().connect().unwrap();
        let org = create_organization(&mut conn, start(), "Acme").unwrap().id;
        Stage { conn, now: start(), org, database }
    }

    /// Creates a stage on a database of any schema, with an organization that does not exist yet.
    pub(crate) fn on(database: TestDatabase, conn: AnyConnection) -> Stage {
        Stage { conn, now: start(), org: OrgId(Uuid::new_v4()), database }
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// Opens a store on the same database, with its clock at `now`.
    pub(crate) async fn store(&self) -> Store {
        self.database.store_with_clock(Clock::manual(self.now)).await
    }

    pub(crate) fn other_org(&mut self) -> OrgId {
        create_organization(&mut self.conn, self.now, "Other").unwrap().id
    }

    pub(crate) fn record(&mut self, run: RunId, update: &RunUpdate) -> RecordedRun {
        record_run(
            &mut self.conn,
            self.now,
            &POLICY,
            Deliver::Automatically,
            (self.org, run),
            update,
            &"req".into(),
        )
        .unwrap()
    }

    /// Records a succeeded run without a delivery.
    pub(crate) fn run(&mut self) -> RunId {
        self.run_to(URL)
    }

    /// Like `run`, with this URL.
    pub(crate) fn run_to(&mut self, url: &str) -> RunId {
        let run = new_run();
        let update = terminal_run(url);
        record_run(
            &mut self.conn,
            self.now,
            &POLICY,
            Deliver::Never,
            (self.org, run),
            &update,
            &"req".into(),
        )
        .unwrap();
        run
    }

    pub(crate) fn stored_run(&mut self, run: RunId) -> Run {
        find_run(&mut self.conn, self.org, run).unwrap().unwrap()
    }

    pub(crate) fn redeliver(&mut self, run: RunId) -> Redelivery {
        redeliver(&mut self.conn, self.now, &POLICY, self.org, run, "req-redelivery".into()).unwrap()
    }

    /// Accepts a delivery of a new run.
    pub(crate) fn accept(&mut self) -> Delivery {
        let run = self.run();
        accepted(self.redeliver(run))
    }

    /// Accepts a delivery of a new run to this URL.
    pub(crate) fn accept_to(&mut self, url: &str) -> Delivery {
        let run = self.run_to(url);
        accepted(self.redeliver(run))
    }

    /// Returns the destination of deliveries to this URL.
    pub(crate) fn destination(&self, url: &str) -> Destination {
        Destination::of(self.org, url)
    }

    /// Returns a doorbell of a delivery to [`URL`].
    pub(crate) fn job(&self, delivery: DeliveryId, attempt: AttemptNumber) -> Job {
        job_to(self.destination(URL), delivery, attempt)
    }

    /// Accepts `count` deliveries.
    pub(crate) fn accept_many(&mut self, count: usize) -> Vec<DeliveryId> {
        (0..count).map(|_| self.accept().id).collect()
    }

    /// Claims the attempts of these jobs under a new claim id.
    pub(crate) fn claim(&mut self, jobs: &[Job]) -> Vec<Claimed> {
        claim_jobs(&mut self.conn, self.now, LEASE, ClaimId::new(self.now), jobs).unwrap()
    }

    /// Claims one attempt, which must be claimable.
    pub(crate) fn claim_one(&mut self, delivery: DeliveryId, attempt: AttemptNumber) -> Claimed {
        let mut claimed = self.claim(&[self.job(delivery, attempt)]);
        assert_eq!(claimed.len(), 1, "attempt {attempt} can be claimed");
        claimed.remove(0)
    }

    /// Accepts a delivery and claims its first attempt.
    pub(crate) fn claimed(&mut self) -> Claimed {
        let delivery = self.accept();
        self.claim_one(delivery.id, 1)
    }

    pub(crate) fn claim_due(&mut self, limit: usize) -> Vec<Claimed> {
        self.poll(&plan(limit)).claimed
    }

    /// Runs one relay poll.
    pub(crate) fn poll(&mut self, plan: &RelayPlan) -> DueClaim {
        let now = self.now;
        self.conn.transaction(|tx| claim_due(tx, now, LEASE, ClaimId::new(now), plan)).unwrap()
    }

    /// Records the attempts whose lease has ended, with this settlement.
    pub(crate) fn recover(&mut self, settlement: Settlement) -> Vec<HeldAttempt> {
        let now = self.now;
        let settle = |held: &HeldAttempt| lost(held, settlement);
        let recovered = self.conn.transaction(|tx| recover_leases(tx, now, 100, &[], false, settle)).unwrap();
        recovered.into_iter().map(|(held, ..)| held).collect()
    }

    pub(crate) fn finish(&mut self, batch: &[AttemptResult]) -> Vec<Effect> {
        let now = self.now;
        self.conn.transaction(|tx| finish(tx, now, batch)).unwrap()
    }

    /// Runs `work` in one transaction.
    pub(crate) fn write<T>(&mut self, work: impl FnOnce(&mut AnyConnection) -> Result<T, StoreError>) -> T {
        self.conn.transaction(work).unwrap()
    }

    /// Inserts `count` copies of a delivery, each with its own run, to destinations `0..destinations` in
    /// turn. Each is due a microsecond after the previous one.
    pub(crate) fn copy(&mut self, delivery: DeliveryId, count: i64, destinations: i64) {
        let (id, later) = match self.conn {
            AnyConnection::Postgres(_) => ("lpad(to_hex(i), 32, '0')::uuid", "i * interval '1 microsecond'"),
            AnyConnection::Sqlite(_) => ("unhex(printf('%032x', i))", "i"),
        };
        let numbers =
            format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})");
        let delivery = self.literal(delivery.0);
        for copies in [
            format!(
                "INSERT INTO runs (org_id, id, status_code, created_at, completed_at, updated_at) {numbers}
                 SELECT d.org_id, {id}, 'succeeded', d.created_at, d.created_at, d.created_at
                 FROM deliveries d CROSS JOIN n WHERE d.id = {delivery}"
            ),
            format!(
                "INSERT INTO deliveries (id, org_id, run_id, callback_url, payload, is_automatic, max_attempts, request_id,
                     created_at) {numbers}
                 SELECT {id}, d.org_id, {id}, d.callback_url, d.payload, d.is_automatic, d.max_attempts, 'r', d.created_at
                 FROM deliveries d CROSS JOIN n WHERE d.id = {delivery}"
            ),
            format!(
                "INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes,
                     max_attempts, attempt_count, next_attempt_at, wake_at, created_at, updated_at) {numbers}
                 SELECT {id}, o.org_id, {id}, i % {destinations}, o.callback_host, o.is_automatic, o.payload_bytes,
                     o.max_attempts, 0, o.next_attempt_at, o.wake_at + {later}, o.created_at, o.updated_at
                 FROM open_deliveries o CROSS JOIN n WHERE o.id = {delivery}"
            ),
        ] {
            self.sql(&copies).unwrap();
        }
    }

    /// Deletes all deliveries and all rows of `destinations`.
    pub(crate) fn clear(&mut self) {
        for table in ["attempts", "open_deliveries", "ended_deliveries", "deliveries", "destinations"] {
            self.sql(&format!("DELETE FROM {table}")).unwrap();
        }
    }

    /// Counts the rows of a table, or those that match a condition.
    pub(crate) fn count(&mut self, from: &str) -> i64 {
        self.number(&format!("SELECT count(*) AS number FROM {from}"))
    }

    /// Finishes one result and returns its effect.
    pub(crate) fn finish_one(&mut self, finished: AttemptResult) -> Effect {
        self.finish(&[finished])[0]
    }

    /// Holds the destination of [`URL`] until this time, as if its receiver had requested it.
    pub(crate) fn hold(&mut self, until: Timestamp) {
        let claimed = self.claimed();
        let hold = HoldChange::HoldUntil(until);
        assert_eq!(self.finish_one(AttemptResult { hold, ..failed(&claimed) }), Effect::Recorded);
    }

    /// Lets the lease end and records `outcome_unknown`, with another attempt immediately.
    pub(crate) fn lose(&mut self, claimed: &Claimed) {
        self.advance(LEASE);
        let lost = finished(claimed, Some(FailureReason::OutcomeUnknown), Settlement::RetryAt(self.now));
        assert_eq!(self.finish_one(lost), Effect::Recorded);
    }

    pub(crate) fn delivery(&mut self, id: DeliveryId) -> Delivery {
        find_delivery(&mut self.conn, self.org, id, DeliveryParts::ALL)
            .unwrap()
            .expect("the delivery is kept")
    }

    pub(crate) fn sql(&mut self, statement: &str) -> QueryResult<usize> {
        diesel::sql_query(statement).execute(&mut self.conn)
    }

    pub(crate) fn number(&mut self, query: &str) -> i64 {
        number(&mut self.conn, query)
    }

    /// Returns the first column of a query's rows.
    pub(crate) fn texts(&mut self, query: &str) -> Vec<String> {
        #[derive(QueryableByName)]
        struct Row {
            #[diesel(sql_type = diesel::sql_types::Text)]
            value: String,
        }
        let rows: Vec<Row> = diesel::sql_query(format!("WITH t (value) AS ({query}) SELECT value FROM t"))
            .load(&mut self.conn)
            .unwrap();
        rows.into_iter().map(|row| row.value).collect()
    }

    /// Returns a column of a table's only row in microseconds since 1970, as stored in the database.
    pub(crate) fn micros(&mut self, table: &str, column: &str) -> i64 {
        match self.conn {
            AnyConnection::Postgres(_) => {
                self.number(&format!("SELECT (extract(epoch FROM {column}) * 1000000)::bigint FROM {table}"))
            }
            AnyConnection::Sqlite(_) => self.number(&format!("SELECT {column} FROM {table}")),
        }
    }

    /// Returns the rows of `destinations` in order: the destination, the end of its hold, and the end of its
    /// probe's lease or 0.
    pub(crate) fn hold_rows(&mut self) -> Vec<(i64, i64, i64)> {
        let rows = self.count("destinations");
        let nth = |column: &str, n: i64| {
            format!("(SELECT {column} FROM destinations ORDER BY destination LIMIT 1 OFFSET {n}) AS t")
        };
        (0..rows)
            .map(|n| {
                let destination = self.number(&format!("SELECT destination FROM {}", nth("destination", n)));
                let [held, probing] = ["held_until", "probing_until"].map(|column| {
                    let is_null = self.count(&format!("{} WHERE {column} IS NULL", nth(column, n))) == 1;
                    if is_null { 0 } else { self.micros(&nth(column, n), column) }
                });
                (destination, held, probing)
            })
            .collect()
    }

    /// Formats an id in the database's SQL.
    pub(crate) fn literal(&self, id: Uuid) -> String {
        match self.conn {
            AnyConnection::Postgres(_) => format!("'{id}'"),
            AnyConnection::Sqlite(_) => format!("X'{}'", id.simple()),
        }
    }

    /// Formats a time in the database's SQL.
    pub(crate) fn moment(&self, moment: Timestamp) -> String {
        match self.conn {
            AnyConnection::Postgres(_) => format!("to_timestamp({} / 1000000.0)", moment.as_micros()),
            AnyConnection::Sqlite(_) => moment.as_micros().to_string(),
        }
    }

    /// Rolls back everything since `begin_test_transaction`.
    pub(crate) fn roll_back(&mut self) {
        type Transactions = <AnyConnection as Connection>::TransactionManager;
        <Transactions as TransactionManager<AnyConnection>>::rollback_transaction(&mut self.conn).unwrap();
    }

    /// Returns whether the database contains these bytes anywhere.
    pub(crate) fn holds(&mut self, bytes: &[u8]) -> bool {
        if let DatabaseUrl::Sqlite(path) = self.database.url() {
            // Committed data is in the file or in its write-ahead log.
            let files =
                [path.clone(), format!("{path}-wal")].map(|file| std::fs::read(file).unwrap_or_default());
            return files.iter().any(|file| file.windows(bytes.len()).any(|window| window == bytes));
        }
        // A row cast to text shows its bytea columns in hex.
        let (hex, text) = (hex::encode(bytes), String::from_utf8_lossy(bytes).replace(['\'', '\0'], ""));
        TABLES.iter().any(|table| {
            let found = format!("position('{hex}' IN t::text) > 0 OR position('{text}' IN t::text) > 0");
            self.number(&format!("SELECT count(*) FROM {table} t WHERE {found}")) > 0
        })
    }
}

const TABLES: [&str; 9] = [
    "organizations",
    "api_tokens",
    "signing_secrets",
    "runs",
    "deliveries",
    "open_deliveries",
    "ended_deliveries",
    "attempts",
    "destinations",
];

pub(crate) fn number(conn: &mut AnyConnection, query: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(query).get_result(conn).unwrap()
}

pub(crate) fn new_run() -> RunId {
    RunId(Uuid::new_v4())
}

pub(crate) fn update(body: &str) -> RunUpdate {
    RunUpdate::parse(body.as_bytes()).unwrap()
}

pub(crate) fn accepted(redelivery: Redelivery) -> Delivery {
    match redelivery {
        Redelivery::Accepted(accepted) => accepted.delivery,
        other => panic!("accepted, not {other:?}"),
    }
}

/// Returns a doorbell. Its organization does not exist, because only the row's organization counts.
pub(crate) fn job_to(destination: Destination, delivery_id: DeliveryId, attempt: AttemptNumber) -> Job {
    Job {
        delivery_id,
        attempt,
        destination,
        payload_size: None,
        org_id: OrgId(Uuid::nil()),
        request_id: "req-of-the-doorbell".into(),
        traceparent: None,
    }
}

/// A poll of a dispatcher with room for `room` attempts, of any size and to any destination.
pub(crate) fn plan(room: usize) -> RelayPlan {
    RelayPlan {
        room,
        bytes: ByteRoom { free: u64::MAX, is_idle: true, per_destination: u64::MAX },
        bytes_in_flight: HashMap::new(),
        ordinary_room: usize::MAX,
        rooms: HashMap::new(),
        cursor: None,
        has_backlog: false,
        stepped_over: Vec::new(),
        targets: Vec::new(),
    }
}

/// Builds a result: a 200 without `reason`, otherwise this failure.
pub(crate) fn finished(
    claimed: &Claimed,
    reason: Option<FailureReason>,
    settlement: Settlement,
) -> AttemptResult {
    let status_code = match reason {
        None => Some(200),
        Some(FailureReason::HttpError) => Some(503),
        Some(_) => None,
    };
    let mut result = result(&claimed.held, settlement);
    result.record = AttemptRecord {
        failure: reason.map(|reason| Failure { reason, detail: format!("{reason} it was") }),
        status_code,
        response_body: status_code.map(|status| format!("answer {status}")),
        response_time_ms: status_code.map(i64::from),
        timing: timing(claimed.held.attempt),
        ..result.record
    };
    result
}

/// Builds a complete timing that differs per attempt.
pub(crate) fn timing(attempt: AttemptNumber) -> Timing {
    Timing {
        resolve: Some(attempt),
        connect: Some(attempt + 1),
        tls: Some(attempt + 2),
        send: Some(attempt + 3),
        wait: Some(attempt + 4),
        body: None,
        remote_address: Some(format!("192.0.2.{attempt}:443")),
        content_type: Some("text/plain".into()),
        headers: Some([("server".into(), format!("s/{attempt}"))].into()),
    }
}

/// Builds the record of a lease that has ended.
pub(crate) fn lost(held: &HeldAttempt, settlement: Settlement) -> AttemptResult {
    let failure = Failure { reason: FailureReason::OutcomeUnknown, detail: "the lease ended".into() };
    let mut result = result(held, settlement);
    result.record.failure = Some(failure);
    result
}

/// Builds the result of an attempt that was not sent, so its number is free again.
pub(crate) fn handed_back(claimed: &Claimed, at: Timestamp) -> AttemptResult {
    let failure = Failure { reason: FailureReason::Timeout, detail: "not sent: no socket".into() };
    let mut result = result(&claimed.held, Settlement::HandedBack(at));
    result.record.failure = Some(failure);
    result
}

fn result(held: &HeldAttempt, settlement: Settlement) -> AttemptResult {
    AttemptResult {
        delivery_id: held.delivery_id,
        claim_id: held.claim_id,
        org_id: held.org_id,
        destination: held.destination,
        is_probe: held.is_probe,
        record: AttemptRecord {
            id: AttemptId::new(held.claimed_at),
            number: held.attempt,
            failure: None,
            status_code: None,
            response_body: None,
            response_time_ms: None,
            timing: Timing::default(),
            claimed_at: held.claimed_at,
        },
        settlement,
        hold: HoldChange::None,
    }
}

pub(crate) fn succeeded(claimed: &Claimed) -> AttemptResult {
    finished(claimed, None, Settlement::Succeeded)
}

pub(crate) fn retried(claimed: &Claimed, at: Timestamp) -> AttemptResult {
    finished(claimed, Some(FailureReason::HttpError), Settlement::RetryAt(at))
}

pub(crate) fn failed(claimed: &Claimed) -> AttemptResult {
    finished(claimed, Some(FailureReason::HttpError), Settlement::Failed)
}

/// Returns claimed attempts as they are read back: since when they were due is no longer known.
pub(crate) fn as_read_back(claimed: Vec<Claimed>) -> Vec<Claimed> {
    claimed.into_iter().map(|claimed| Claimed { due_at: None, ..claimed }).collect()
}

pub(crate) fn ids(claimed: &[Claimed]) -> Vec<DeliveryId> {
    let mut ids: Vec<_> = claimed.iter().map(|claimed| claimed.held.delivery_id).collect();
    ids.sort_unstable();
    ids
}

/// Starts `count` write transactions concurrently and collects their results.
pub(crate) async fn at_once<T, E>(
    store: &Store,
    count: usize,
    work: impl Fn(&mut AnyConnection, Timestamp) -> Result<T, E> + Clone + Send + 'static,
) -> Vec<T>
where
    T: Send + 'static,
    E: From<StoreError> + From<diesel::result::Error> + std::fmt::Debug + Send + 'static,
{
    let tasks = (0..count).map(|_| {
        let (store, work) = (store.clone(), work.clone());
        async move { store.write(move |tx, now| work(tx, now)).await }
    });
    let answers = tasks.collect::<tokio::task::JoinSet<_>>().join_all().await;
    answers.into_iter().map(|answer| answer.expect("no transaction fails")).collect()
}

//! Pruning and erasing, on both engines.

use std::time::Duration;

use contracts::{AttemptId, ClaimId, Destination, Job, OrgId, PayloadFormat, RunId, Timestamp};
use dispatcher::RetryPolicy;
use engine::{Measured, Outcome, Response};
use store::{
    AcceptPolicy, Accepted, AnyConnection, Clock, DatabaseUrl, Deliver, RecordedRun, claim_jobs, find_run,
    finish, record_run,
};
use testkit::{Backend, TestDatabase, terminal_run};
use uuid::Uuid;

use crate::cli::Cli;

const BACKENDS: [Backend; 2] = [Backend::Postgres, Backend::Sqlite];
const DAY: Duration = Duration::from_secs(24 * 3600);
const POLICY: AcceptPolicy = AcceptPolicy { max_attempts: 3, payload_format: PayloadFormat::Python };

/// Records a run whose callback succeeded `days` days ago.
fn delivered(tx: &mut AnyConnection, org: OrgId, days: u32) -> RunId {
    let then = now() - DAY * days;
    let run = RunId(Uuid::new_v4());
    let update = terminal_run("https://hooks.example.com/");
    let recorded =
        record_run(tx, then, &POLICY, Deliver::Automatically, (org, run), &update, &"r".into()).unwrap();
    let RecordedRun::Created(_, Some(Accepted { delivery, .. })) = recorded else { panic!("{recorded:?}") };
    let later = then + Duration::from_secs(5);
    let job = Job {
        delivery_id: delivery.id,
        attempt: 1,
        destination: Destination::of(org, &delivery.callback_url),
        payload_size: None,
        org_id: org,
        request_id: "r".into(),
        traceparent: None,
    };
    let claimed = claim_jobs(tx, later, Duration::from_secs(60), ClaimId::new(later), &[job]).unwrap();
    let response = Response { status: 200, body: "private".into(), retry_after: Vec::new() };
    let retry = RetryPolicy { schedule: vec![DAY], jitter: 0.0, stop_on_gone: false, hold_cap: DAY };
    let outcome = Outcome::Answered(response);
    let result =
        retry.settle(&claimed[0].held, AttemptId::new(later), outcome, Measured::default(), later, 0.0);
    finish(tx, later, &[result]).unwrap();
    run
}

fn now() -> Timestamp {
    Clock::system().now()
}

#[test]
fn pruning_removes_older_deliveries_and_runs_and_prints_their_number() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        let mut conn = database.url().connect().unwrap();
        for days in [100, 95, 91, 80, 3] {
            delivered(&mut conn, org.parse().unwrap(), days);
        }
        let prune = |age| cli.ok(&["prune", "--older-than", age, "--batch", "2"]);
        assert_eq!(prune("90d"), r#"{"attempts":3,"deliveries":3,"runs":0}"#);
        assert_eq!(prune("90d"), r#"{"attempts":0,"deliveries":0,"runs":0}"#);
        let with_runs = cli.ok(&["prune", "--older-than", "90d", "--runs", "--batch", "2"]);
        assert_eq!(with_runs, r#"{"attempts":0,"deliveries":0,"runs":3}"#);
        assert_eq!(prune("1d"), r#"{"attempts":2,"deliveries":2,"runs":0}"#);
    }
}

#[test]
fn an_invalid_or_too_short_age_is_refused() {
    let cli = Cli::new();
    for (age, word) in [("12h", "at least 1d"), ("ninety", "invalid"), ("", "empty"), ("-5d", "invalid")] {
        let ended = cli.run(&["prune", &format!("--older-than={age}")]);
        assert_eq!(ended.code, 2, "{age}");
        assert!(ended.stderr.contains(word), "{age}: {}", ended.stderr);
    }
    assert_eq!(cli.run(&["prune"]).code, 2);
}

#[test]
fn erasing_a_run_prints_what_was_erased_and_can_be_repeated() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        let (mut conn, id) = (database.url().connect().unwrap(), org.parse().unwrap());
        let run = delivered(&mut conn, id, 3).to_string();
        let erase = ["runs", "erase", &run, "--org", &org];
        assert_eq!(cli.ok(&erase), r#"{"payloads":1,"response_bodies":1}"#);
        assert!(cli.ok(&erase).starts_with(r#"{"erased_at":"2"#));
        let erased = find_run(&mut conn, id, run.parse().unwrap()).unwrap().unwrap();
        assert_eq!((erased.output, erased.metadata), (None, None));
        if let DatabaseUrl::Sqlite(path) = database.url() {
            for file in [path.clone(), format!("{path}-wal")] {
                let bytes = std::fs::read(file).unwrap_or_default();
                for said in [&b"private"[..], b"cdn.example.com"] {
                    assert!(!bytes.windows(said.len()).any(|window| window == said));
                }
            }
        }
    }
}

#[test]
fn a_run_that_cannot_be_erased_is_refused_with_the_reason() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        let other = cli.ok(&["org", "create", "other"]);
        let mut conn = database.url().connect().unwrap();
        let run = delivered(&mut conn, org.parse().unwrap(), 3).to_string();
        let open = r#"{"id": "0190a6e8-0000-7000-8000-000000000001", "status_code": "running"}"#;
        assert_eq!(cli.run_with_input(&["runs", "import", "-", "--org", &org], open).code, 0);
        for (run, org, word) in [
            (run.as_str(), other.as_str(), "there is no run"),
            (run.as_str(), "0190a6e8-0000-7000-8000-000000000000", "there is no organization"),
            ("0190a6e8-0000-7000-8000-000000000001", org.as_str(), "the run is running"),
        ] {
            let ended = cli.run(&["runs", "erase", run, "--org", org]);
            assert_eq!(ended.code, 1);
            assert!(ended.stderr.contains(word), "{}", ended.stderr);
        }
    }
}

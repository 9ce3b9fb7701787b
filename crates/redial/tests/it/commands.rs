//! The administrative commands, on both engines.

use contracts::{DeliveryStatus, OrgId, RunId, SecretId};
use serde_json::Value;
use store::{DatabaseUrl, Keyring, StoreError, count_deliveries, find_run, open_secret};
use testkit::{Backend, TestDatabase};

use crate::cli::{Cli, KEY};

const BACKENDS: [Backend; 2] = [Backend::Postgres, Backend::Sqlite];
const NOBODY: &str = "0190a6e8-0000-7000-8000-000000000000";
const RUNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/runs.jsonl");

#[test]
fn migrate_brings_a_database_up_to_date_and_can_be_repeated() {
    for backend in BACKENDS {
        let database = TestDatabase::empty(backend);
        let cli = Cli::on(&database);
        let refused = cli.run(&["org", "create", "acme"]);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("redial migrate"), "{}", refused.stderr);
        let applied = || cli.ok(&["migrate"]).split(' ').find_map(|word| word.parse::<u32>().ok());
        assert!(applied() > Some(0));
        assert_eq!(applied(), Some(0));
        cli.ok(&["org", "create", "acme"]);
    }
}

#[test]
fn concurrent_migrations_all_succeed() {
    for backend in BACKENDS {
        let database = TestDatabase::empty(backend);
        let cli = Cli::on(&database);
        let running = [(); 4].map(|()| cli.command(&["migrate"]).spawn().unwrap());
        for child in running {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{backend:?}: {output:?}");
        }
        cli.ok(&["org", "create", "acme"]);
    }
}

#[test]
fn organizations_tokens_and_secrets_are_printed_alone_or_as_json() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        org.parse::<OrgId>().unwrap();
        let json = |arguments: &[&str]| -> Value {
            serde_json::from_str(&cli.ok(&[arguments, &["--json"]].concat())).unwrap()
        };
        assert_eq!(json(&["org", "create", "acme"])["name"], "acme");

        assert!(cli.ok(&["token", "create", "--org", &org]).starts_with("rf_live_"));
        let token = json(&[
            "token",
            "create",
            "--org",
            &org,
            "--scope",
            "runs:read",
            "--scope",
            "runs:execute",
            "--label",
            "l",
        ]);
        assert_eq!(token["scopes"], serde_json::json!(["runs:read", "runs:execute"]));
        assert_eq!((&token["org_id"], &token["label"]), (&org.clone().into(), &"l".into()));
        assert_eq!(json(&["token", "create", "--org", &org])["scopes"], Value::Null);

        assert!(cli.ok(&["secret", "create", "--org", &org]).starts_with("whsec_"));
        let secret = json(&["secret", "create", "--org", &org, "--label", "second"]);
        assert!(secret["plain_secret"].as_str().unwrap().starts_with("whsec_"));
        assert_eq!((&secret["is_current"], &secret["label"]), (&false.into(), &"second".into()));
    }
}

#[test]
fn tokens_are_listed_and_revoked_without_being_shown() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        let token = cli.ok(&[
            "token",
            "create",
            "--org",
            &org,
            "--label",
            "ci",
            "--expires-in",
            "90d",
            "--scope",
            "runs:read",
        ]);
        let list = || cli.ok(&["token", "list", "--org", &org]);
        assert!(list().contains("good until") && list().contains("\"ci\"  runs:read"), "{}", list());
        let json: Value = serde_json::from_str(&cli.ok(&["token", "list", "--org", &org, "--json"])).unwrap();
        let id = json[0]["id"].as_str().unwrap();
        assert_eq!(json[0]["revoked_at"], Value::Null);
        assert!(!json.to_string().contains(&token["rf_live_".len()..]));

        for wrong in [&token, NOBODY, "x"] {
            let ended = cli.run(&["token", "revoke", wrong, "--org", &org]);
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{}", ended.stderr);
            assert!(!ended.stderr.contains(&token), "{}", ended.stderr);
        }
        assert!(list().contains("good until"));
        let revoked = cli.ok(&["token", "revoke", id, "--org", &org]);
        assert!(revoked.starts_with("revoked "), "{revoked}");
        assert_eq!(cli.ok(&["token", "revoke", id, "--org", &org]), revoked, "repeating it changes nothing");
        assert!(list().contains(&revoked), "{}", list());
    }
}

#[test]
fn an_organization_that_does_not_exist_is_refused() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        for arguments in [
            ["token", "create", "--org", NOBODY].as_slice(),
            &["token", "list", "--org", NOBODY],
            &["secret", "create", "--org", NOBODY],
            &["runs", "import", RUNS, "--org", NOBODY],
        ] {
            let ended = cli.run(arguments);
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{arguments:?}");
            assert!(ended.stderr.contains(&format!("no organization {NOBODY}")), "{}", ended.stderr);
        }
    }
}

#[test]
fn wrong_usage_exits_with_status_2() {
    let too_long = "x".repeat(256);
    for arguments in [
        [].as_slice(),
        &["redeliver"],
        &["org", "create"],
        &["org", "create", ""],
        &["token", "create"],
        &["token", "create", "--org", "acme"],
        &["token", "create", "--org", NOBODY, "--scope", "runs:delete"],
        &["token", "create", "--org", NOBODY, "--expires-in", "0s"],
        &["token", "create", "--org", NOBODY, "--expires-in", "200y"],
        &["token", "revoke", NOBODY],
        &["secret", "create", "--org", NOBODY, "--label", &too_long],
        &["runs", "import", "--org", NOBODY],
        &["listen", "localhost"],
        &["listen", "--secret", "secret"],
        &["--config", "missing.toml", "config"],
    ] {
        let ended = Cli::new().run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn an_unreachable_database_fails_a_command() {
    let cli = Cli::new().with("DATABASE_URL", "postgres://someone:hunter2@127.0.0.1:1/redial");
    for arguments in [["migrate"].as_slice(), &["org", "create", "acme"]] {
        let ended = cli.run(arguments);
        assert_eq!(ended.code, 1, "{arguments:?}");
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}

#[test]
fn a_secret_created_for_a_dev_database_is_sealed_with_its_key() {
    let database = TestDatabase::new(Backend::Sqlite);
    let DatabaseUrl::Sqlite(path) = database.url() else { unreachable!("requested above") };
    let key = Keyring::generate("dev");
    std::fs::write(std::path::Path::new(path).with_file_name("secrets.key"), key.as_bytes()).unwrap();
    let cli = Cli::new().with("DATABASE_URL", &format!("sqlite:{path}"));
    let org = cli.ok(&["org", "create", "acme"]);
    let made: Value = serde_json::from_str(&cli.ok(&["secret", "create", "--org", &org, "--json"])).unwrap();
    let (org, id): (OrgId, SecretId) = (org.parse().unwrap(), made["id"].as_str().unwrap().parse().unwrap());
    let keyring = Keyring::parse(&[key.as_str()]).unwrap();
    let mut conn = database.url().connect().unwrap();
    let opened = open_secret(&mut conn, &keyring, org, id).unwrap().unwrap();
    assert_eq!(opened.plain(), made["plain_secret"].as_str().unwrap());
}

#[test]
fn importing_runs_can_be_repeated_and_creates_deliveries_only_on_request() {
    let count = std::fs::read_to_string(RUNS).unwrap().lines().count();
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let mut conn = database.url().connect().unwrap();

        let org = cli.ok(&["org", "create", "history"]);
        assert_eq!(
            cli.ok(&["runs", "import", RUNS, "--org", &org]),
            format!("{count} created, 0 known, 0 bad")
        );
        assert_eq!(
            cli.ok(&["runs", "import", RUNS, "--org", &org]),
            format!("0 created, {count} known, 0 bad")
        );
        assert!(count_deliveries(&mut conn, org.parse().unwrap()).unwrap().is_empty());

        let org = cli.ok(&["org", "create", "live"]);
        for _ in 0..2 {
            cli.ok(&["runs", "import", RUNS, "--org", &org, "--deliver"]);
        }
        let deliveries = count_deliveries(&mut conn, org.parse().unwrap()).unwrap();
        let ended_with_url =
            std::fs::read_to_string(RUNS).unwrap().lines().filter(|line| is_announced(line)).count();
        assert_eq!(
            deliveries.into_iter().collect::<Vec<_>>(),
            [(DeliveryStatus::Pending, ended_with_url as i64)]
        );
    }
}

fn is_announced(line: &str) -> bool {
    let run: Value = serde_json::from_str(line).unwrap();
    let has_ended = !matches!(run["status_code"].as_str(), Some("queued" | "dispatching" | "running"));
    has_ended && run["callback_url"].is_string()
}

#[test]
fn a_bad_line_is_reported_with_its_number_and_reason_and_the_import_continues() {
    let id = |n: u8| format!("0190a6e8-0000-7000-8000-0000000000{n:02}");
    let lines = [
        format!(r#"{{"id": "{}", "status_code": "succeeded"}}"#, id(1)),
        r#"{"status_code": "queued""#.to_owned(),
        String::new(),
        r#"{"status_code": "queued"}"#.to_owned(),
        r#"{"id": "17", "status_code": "queued"}"#.to_owned(),
        "[]".to_owned(),
        format!(r#"{{"id": "{}", "status_code": "done", "colour": 1}}"#, id(2)),
        format!(r#"{{"id": "{}", "status_code": "queued", "callback_url": "http://127.0.0.1/"}}"#, id(3)),
        format!(r#"{{"id": "{}", "status_code": "failed"}}"#, id(1)),
        format!(r#"{{"id": "{}", "status_code": "queued", "output": "{}"}}"#, id(4), "x".repeat(2000)),
        format!(r#"{{"id": "{}", "status_code": "queued"}}"#, id(5)) + "\r",
        format!(
            r#"{{"id": "{}", "status_code": "running", "callback_url": "HTTPS://BÜCHER.example:443"}}"#,
            id(5)
        ),
        format!(r#"{{"id": "{}", "status_code": "queued", "callback_url": "https:example.com"}}"#, id(6)),
        format!(r#"{{"id": "{}", "status_code": "queued", "callback_url": "https://8.8.8.8/"}}"#, id(6)),
        format!(
            r#"{{"id": "{}", "status_code": "queued", "callback_url": "https://example.com:22/"}}"#,
            id(6)
        ),
    ];
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli =
            Cli::on(&database).with("REDIAL_API__MAX_BODY", "2000").with("REDIAL_EGRESS__DENY", "8.8.8.0/24");
        let org = cli.ok(&["org", "create", "acme"]);
        let ended = cli.run_with_input(&["runs", "import", "-", "--org", &org], &lines.join("\n"));
        assert_eq!((ended.code, ended.stdout.trim()), (1, "2 created, 1 known, 11 bad"), "{}", ended.stderr);
        for (number, reason) in [
            (2, "expected ',' or the end"),
            (4, "id is missing"),
            (5, "id is not a UUID"),
            (6, "expected a JSON object"),
            (7, "status_code: expected a run status; colour: unknown field"),
            (8, "callback_url: "),
            (9, "the run has ended as succeeded"),
            (10, "longer than api.max_body"),
            (13, "callback_url: the scheme must be followed by `://` and the host"),
            (14, "callback_url: address 8.8.8.8 is refused: denied by this installation"),
            (15, "callback_url: port 22 is refused"),
        ] {
            let reported = ended.stderr.lines().find(|line| line.starts_with(&format!("line {number}: ")));
            assert!(reported.is_some_and(|line| line.contains(reason)), "line {number}: {}", ended.stderr);
        }
        let mut conn = database.url().connect().unwrap();
        let run: RunId = id(5).parse().unwrap();
        let run = find_run(&mut conn, org.parse().unwrap(), run).unwrap().unwrap();
        assert_eq!(run.status_code.to_string(), "running", "the lines of a run are recorded in order");
        assert_eq!(run.callback_url.as_deref(), Some("https://xn--bcher-kva.example/"));
    }
}

#[test]
fn an_unreadable_file_is_an_error_and_an_empty_one_is_not() {
    let database = TestDatabase::new(Backend::Sqlite);
    let cli = Cli::on(&database);
    let org = cli.ok(&["org", "create", "acme"]);
    let ended = cli.run(&["runs", "import", "missing.jsonl", "--org", &org]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("missing.jsonl"), "{}", ended.stderr);
    assert_eq!(cli.run(&["runs", "import", ".", "--org", &org]).code, 1);
    assert_eq!(cli.ok(&["runs", "import", "-", "--org", &org]), "0 created, 0 known, 0 bad");
}

#[tokio::test]
async fn concurrent_imports_of_the_same_runs_succeed() {
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let cli = Cli::on(&database);
        let org = cli.ok(&["org", "create", "acme"]);
        let imports =
            [(); 3].map(|()| cli.command(&["runs", "import", RUNS, "--org", &org]).spawn().unwrap());
        let mut created = 0;
        for import in imports {
            let output = import.wait_with_output().unwrap();
            assert!(output.status.success(), "{backend:?}: {output:?}");
            let counts = String::from_utf8(output.stdout).unwrap();
            created += counts.split(' ').next().unwrap().parse::<usize>().unwrap();
        }
        assert_eq!(created, std::fs::read_to_string(RUNS).unwrap().lines().count());
        let org: OrgId = org.parse().unwrap();
        let counted = database.store().await.read(move |tx| count_deliveries(tx, org)).await;
        assert!(counted.map_err(|error: StoreError| error).unwrap().is_empty());
    }
}

#[test]
fn rewrap_seals_every_secret_with_the_first_key_and_names_what_it_cannot_open() {
    const NEW: &str = "new:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
    for backend in BACKENDS {
        let database = TestDatabase::new(backend);
        let with = |keys: &str| Cli::on(&database).with("REDIAL_SECRETS__KEYS", keys);
        let old = with(KEY);
        let org = old.ok(&["org", "create", "acme"]);
        old.ok(&["secret", "create", "--org", &org]);
        let alone = with(NEW).run(&["secrets", "rewrap"]);
        assert_eq!(alone.code, 1);
        let report: Value = serde_json::from_str(&alone.stdout).unwrap();
        assert_eq!((&report["rewrapped"], &report["unopened"][0]["key_id"]), (&0.into(), &"test".into()));
        assert_eq!(report["unopened"][0]["org_id"], org);
        assert!(alone.stderr.contains("secrets.keys"), "{}", alone.stderr);
        let both = with(&format!("{NEW},{KEY}"));
        assert_eq!(both.ok(&["secret", "rewrap"]), r#"{"rewrapped":1,"unopened":[]}"#);
        assert_eq!(both.ok(&["secret", "rewrap"]), r#"{"rewrapped":0,"unopened":[]}"#);
        assert_eq!(with(NEW).ok(&["secrets", "rewrap"]), r#"{"rewrapped":0,"unopened":[]}"#);
    }
}

//! `redial doctor` finds what is wrong with an installation, and changes nothing.

mod cases;
mod servers;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use store::DatabaseUrl;
use testkit::{Backend, TestDatabase};
use uuid::Uuid;

use crate::cli::{Cli, Ended, KEY};
use crate::system::shared_broker;

/// What depends on the machine that runs the tests: its server's configuration, its name servers.
const OF_THE_MACHINE: [&str; 2] = ["database.autovacuum", "name_servers"];
/// The checks of an installation on PostgreSQL.
const COUNT: usize = 25;

/// A sound installation without running services.
struct Installation {
    database: TestDatabase,
    queue: String,
    /// A port that another program has.
    taken: TcpListener,
}

impl Installation {
    fn new() -> Installation {
        let installation = Installation {
            database: TestDatabase::new(Backend::Postgres),
            queue: format!("redial.test.{}", Uuid::new_v4().simple()),
            taken: TcpListener::bind("127.0.0.1:0").unwrap(),
        };
        let org = installation.cli().ok(&["org", "create", "acme"]);
        installation.cli().ok(&["secret", "create", "--org", &org]);
        installation
    }

    fn cli(&self) -> Cli {
        Cli::on(&self.database)
            .with("AMQP_URL", &shared_broker())
            .with("REDIAL_BROKER__QUEUE", &self.queue)
            .with("REDIAL_API__LISTEN", "127.0.0.1:0")
            // Tests that run at the same time use many of the server's connections.
            .with("REDIAL_DATABASE__POOL_SIZE", "4")
    }
}

/// Returns `url` with another user and password.
fn with_user(url: &str, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.into()
}

/// Returns the report of `--json`, whose exit status must be that of its problems.
fn report(ended: &Ended) -> Value {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    assert_eq!(ended.code, i32::from(report["problems"] != 0), "{report:#}");
    report
}

/// Returns each check's name, its status, and the rest of its line.
fn checks(report: &Value) -> impl Iterator<Item = (&str, &str, String)> {
    report["checks"].as_array().unwrap().iter().map(|check| {
        let text = |key: &str| check[key].as_str().unwrap_or_default();
        (text("check"), text("status"), format!("{}; {}", text("found"), text("advice")))
    })
}

/// Returns the warnings and problems that the installation itself causes.
fn findings(report: &Value) -> Vec<(&str, &str, String)> {
    let is_finding = |(check, status, _): &(&str, &str, String)| {
        ["warning", "problem"].contains(status) && !OF_THE_MACHINE.contains(check)
    };
    checks(report).filter(is_finding).collect()
}

#[test]
fn a_sound_installation_has_no_findings_and_is_not_changed() {
    let installation = Installation::new();
    for _ in 0..2 {
        let report = report(&installation.cli().run(&["doctor", "--json"]));
        assert_eq!(findings(&report), []);
        assert_eq!(checks(&report).filter(|(_, status, _)| *status != "not_checked").count(), COUNT);
        let queue = checks(&report).find(|(check, ..)| *check == "broker.queue").unwrap();
        assert!(queue.2.contains("does not exist yet"), "{queue:?}");
    }
}

#[test]
fn each_check_is_a_line_or_an_object_and_is_documented() {
    let installation = Installation::new();
    let lines = installation.cli().run(&["doctor"]).stdout;
    let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md"));
    let report = report(&installation.cli().run(&["doctor", "--json"]));
    assert_eq!(lines.lines().count(), checks(&report).count());
    for (line, (check, ..)) in lines.lines().zip(checks(&report)) {
        assert!(line.contains(&format!(" {check}: ")), "{line}");
        assert!(documented.contains(&format!("`{check}`")), "{check} is not in docs/operations.md");
    }
}

#[test]
fn a_low_limit_of_open_files_is_a_problem() {
    let installation = Installation::new();
    let redial = installation.cli().command(&["doctor", "--json"]);
    let variables = redial.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 200 && exec \"$0\" doctor --json"]).arg(redial.get_program());
    let report = report(&limited.env_clear().envs(variables).output().unwrap().into());
    let [("open_files", "problem", says)] = &findings(&report)[..] else { panic!("{report:#}") };
    assert!(says.contains("the hard limit is 200, and a dispatcher needs 384; raise it"), "{says}");
}

#[test]
fn the_processes_that_share_the_database_are_counted() {
    let installation = Installation::new();
    let cli = installation.cli().with("REDIAL_DATABASE__POOL_SIZE", "");
    for (processes, connections, fits) in [("1", 16, true), ("3", 38, true), ("1000", 11_000, false)] {
        let report = report(&cli.run(&["doctor", "--json", "--processes", processes]));
        let found = checks(&report).find(|(check, ..)| *check == "database.connections").unwrap();
        assert!(
            found.2.starts_with(&format!("{processes} processes need up to {connections} of ")),
            "{found:?}"
        );
        // Other tests may leave too few just now, which is a warning.
        assert_eq!(found.1 != "problem", fits, "{found:?}");
    }
    for wrong in ["0", "many"] {
        assert_eq!(cli.run(&["doctor", "--processes", wrong]).code, 2);
    }
}

#[test]
fn passwords_and_keys_are_not_printed() {
    let installation = Installation::new();
    let cli = installation
        .cli()
        .with("DATABASE_URL", "postgres://someone:hunter2@127.0.0.1:1/redial?sslpassword=hunter2")
        .with("AMQP_URL", &with_user(&shared_broker(), "someone", "hunter2"));
    for arguments in [["doctor"].as_slice(), &["doctor", "--json"]] {
        let ended = cli.run(arguments);
        assert_eq!(ended.code, 1);
        for secret in ["hunter2", "AAECAw"] {
            assert!(!ended.stdout.contains(secret) && !ended.stderr.contains(secret), "{}", ended.stdout);
        }
    }
}

#[test]
fn bad_settings_end_it_like_a_service() {
    let database = TestDatabase::new(Backend::Postgres);
    for (name, value) in [
        ("AMQP_URL", ""),
        ("AMQP_URL", "http://rabbit"),
        ("DATABASE_URL", "mysql://db/x"),
        ("REDIAL_SECRETS__KEYS", "test:c2hvcnQ="),
        ("REDIAL_DELIVERY__TIMEOUT", "never"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "no url"),
    ] {
        let cli = Cli::on(&database).with("AMQP_URL", &shared_broker()).with(name, value);
        let (ended, of_service) = (cli.run(&["doctor"]), cli.run(&["dispatcher"]));
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{name}: {}", ended.stderr);
        assert_eq!(ended.stderr, of_service.stderr);
    }
}

#[test]
fn an_embedded_installation_is_checked_without_a_broker() {
    let database = TestDatabase::new(Backend::Sqlite);
    let DatabaseUrl::Sqlite(path) = database.url() else { unreachable!("SQLite was requested") };
    let cli = Cli::on(&database);
    let org = cli.ok(&["org", "create", "acme"]);
    cli.ok(&["secret", "create", "--org", &org]);
    let found = report(&cli.run(&["doctor", "--json"]));
    assert_eq!(findings(&found), []);
    let missing = Cli::new().with("DATABASE_URL", "sqlite:missing.db").with("REDIAL_SECRETS__KEYS", KEY);
    let found = report(&missing.run(&["doctor", "--json"]));
    let [("database", "problem", says)] = &findings(&found)[..] else { panic!("{found:#}") };
    assert!(says.contains("start `redial dev`"), "{says}");
    assert_eq!(missing.directory().read_dir().unwrap().count(), 0, "no file was created");
    // The file beside the database must hold a key.
    std::fs::write(Path::new(path).with_file_name("secrets.key"), "nothing").unwrap();
    let found = report(&cli.run(&["doctor", "--json"]));
    let [("keys", "problem", says)] = &findings(&found)[..] else { panic!("{found:#}") };
    assert!(says.contains("does not hold a key") && says.contains("restore the key file"), "{says}");
}

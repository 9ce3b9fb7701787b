//! Configuration of the binary, and how services start and stop.

use contracts::{SigningSecret, Timestamp, sign};
use testkit::{Backend, Signal, TestDatabase};

use crate::cli::{Cli, KEY};

/// An address without a listener.
const AWAY: &str = "127.0.0.1:1";
const SERVICES: [&str; 2] = ["api", "dispatcher"];

#[test]
fn config_prints_the_effective_configuration_with_secrets_masked() {
    let cli = Cli::new()
        .with("DATABASE_URL", "postgres://me:hunter2@db/redial?sslpassword=hunter2")
        .with("AMQP_URL", "amqp://me:hunter2@rabbit")
        .with("REDIAL_SECRETS__KEYS", &format!("{KEY},hunter2"))
        .with("REDIAL_DELIVERY__SCHEDULE", "1s,90s");
    std::fs::write(cli.directory().join("redial.toml"), "[delivery]\ntimeout = \"7s\"\n").unwrap();
    let shown = cli.ok(&["config"]);
    assert!(!shown.contains("hunter2") && !shown.contains("AAECAw"), "{shown}");
    let shown: toml::Table = shown.parse().unwrap();
    assert_eq!(shown["database"]["url"].as_str(), Some("postgres://me:****@db/redial?sslpassword=****"));
    assert_eq!(shown["broker"]["url"].as_str(), Some("amqp://me:****@rabbit"));
    assert_eq!(shown["secrets"]["keys"].to_string(), r#"["test:****", "****"]"#);
    assert_eq!(shown["delivery"]["timeout"].as_str(), Some("7s"));
    assert_eq!(shown["delivery"]["schedule"].to_string(), r#"["1s", "1m 30s"]"#);
}

#[test]
fn a_named_file_is_read_instead_of_the_working_directorys() {
    let cli = Cli::new();
    std::fs::write(cli.directory().join("redial.toml"), "[delivery]\nmax_attempts = 2\ntimeout = \"7s\"")
        .unwrap();
    std::fs::write(cli.directory().join("other.toml"), "[delivery]\nmax_attempts = 3").unwrap();
    let shown: toml::Table = cli.ok(&["config", "--config", "other.toml"]).parse().unwrap();
    assert_eq!(shown["delivery"]["max_attempts"].as_integer(), Some(3));
    assert_eq!(shown["delivery"]["timeout"].as_str(), Some("10s"));
}

#[test]
fn an_invalid_configuration_ends_every_command_with_status_2_and_names_the_key() {
    let cli = Cli::new().with("REDIAL_DELIVERY__LEASE", "10s");
    for arguments in [["config"].as_slice(), &["migrate"], &["api"], &["dispatcher"], &["demo"]] {
        let ended = cli.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(ended.stderr.contains("delivery.lease"), "{}", ended.stderr);
    }
    let ended = Cli::new().with("REDIAL_DELIVERY__TIMEOT", "10s").run(&["api"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("unknown key delivery.timeot"), "{}", ended.stderr);
}

#[test]
fn a_service_with_missing_or_invalid_settings_refuses_to_start_and_names_the_key() {
    let (postgres, amqp) = (("DATABASE_URL", "postgres://127.0.0.1:1/x"), ("AMQP_URL", "amqp://127.0.0.1:1"));
    let keys = ("REDIAL_SECRETS__KEYS", KEY);
    for service in SERVICES {
        for (variables, key) in [
            ([amqp, keys].as_slice(), "database.url"),
            (&[("DATABASE_URL", "mysql://db/x"), amqp, keys], "database.url"),
            (&[("DATABASE_URL", "sqlite:redial.db"), amqp, keys], "database.url"),
            (&[postgres, keys], "broker.url"),
            (&[postgres, ("AMQP_URL", "http://rabbit"), keys], "broker.url"),
            (&[postgres, amqp], "secrets.keys"),
            (&[postgres, amqp, ("REDIAL_SECRETS__KEYS", "test:c2hvcnQ=")], "secrets.keys"),
        ] {
            let cli = variables.iter().fold(Cli::new(), |cli, (name, value)| cli.with(name, value));
            let ended = cli.run(&[service]);
            assert_eq!(ended.code, 2, "{service} {variables:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(key), "{service} {variables:?}: {}", ended.stderr);
        }
    }
}

#[test]
fn a_service_refuses_keys_that_do_not_open_its_secrets_and_names_the_missing_key() {
    let database = TestDatabase::new(Backend::Postgres);
    let cli = Cli::on(&database);
    let org = cli.ok(&["org", "create", "acme"]);
    cli.ok(&["secret", "create", "--org", &org]);
    for service in SERVICES {
        // Another key, under another name and under the same name.
        for kid in ["other", "test"] {
            let keys = format!("{kid}:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=");
            let cli = Cli::on(&database)
                .with("REDIAL_SECRETS__KEYS", &keys)
                .with("REDIAL_API__LISTEN", "127.0.0.1:0")
                .with("AMQP_URL", &format!("amqp://{AWAY}"));
            let ended = cli.run(&[service]);
            assert_eq!(ended.code, 1, "{service} {kid}: {}", ended.stderr);
            assert!(ended.stderr.contains("sealed with key \"test\""), "{}", ended.stderr);
            assert!(ended.stderr.contains("secrets.keys"), "{}", ended.stderr);
        }
    }
}

#[test]
fn a_service_refuses_an_unmigrated_schema_and_suggests_redial_migrate() {
    let database = TestDatabase::empty(Backend::Postgres);
    let cli = Cli::on(&database)
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_API__LISTEN", "127.0.0.1:0");
    for service in SERVICES {
        let ended = cli.run(&[service]);
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("redial migrate"), "{}", ended.stderr);
    }
}

#[test]
fn a_service_waits_for_an_unavailable_database_until_it_is_stopped() {
    let cli = Cli::new()
        .with("DATABASE_URL", &format!("postgres://{AWAY}/redial"))
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_API__LISTEN", "127.0.0.1:0")
        .with("REDIAL_SECRETS__KEYS", KEY);
    for service in SERVICES {
        let mut running = cli.spawn(&[service]);
        running.logged("waiting for the database");
        running.logged("waiting for the database");
        assert_eq!(running.stop(), 1);
    }
}

#[test]
fn services_work_without_a_broker_serve_health_checks_and_exit_cleanly_on_sigterm() {
    let database = TestDatabase::new(Backend::Postgres);
    let cli = Cli::on(&database)
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_API__LISTEN", "127.0.0.1:0")
        .with("REDIAL_DISPATCHER__LISTEN", "127.0.0.1:0")
        .with("REDIAL_LOG__FORMAT", "json");
    for (service, started) in [("api", "serving the API"), ("dispatcher", "answering health checks")] {
        let mut running = cli.spawn(&[service]);
        let line: serde_json::Value = serde_json::from_str(&running.logged(started)).unwrap();
        let url = format!("http://{}/v1/health", line["listen"].as_str().unwrap());
        cli.ok(&["healthcheck", &url]);
        assert_eq!(cli.run(&["healthcheck", &url.replace("health", "wealth")]).code, 1);
        let ready = url.replace("v1/health", "health/ready");
        cli.ok(&["healthcheck", &ready]);
        if service == "dispatcher" {
            // It still delivers, but no longer consumes from the broker.
            let red =
                std::iter::repeat_with(|| cli.run(&["healthcheck", &ready])).find(|ended| ended.code == 1);
            let why = red.unwrap().stderr;
            assert!(why.contains("503") && why.contains("RabbitMQ has not been consumed from for "), "{why}");
        }
        assert_eq!(running.stop(), 0);
        assert_eq!(cli.run(&["healthcheck", &url]).code, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_dispatcher_is_not_ready_until_its_attempts_in_flight_are_finished() {
    let database = TestDatabase::new(Backend::Postgres);
    let cli = Cli::on(&database)
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_EGRESS__ALLOW", "127.0.0.0/8")
        .with("REDIAL_DISPATCHER__LISTEN", "127.0.0.1:0")
        .with("REDIAL_LOG__FORMAT", "json");
    let (sink, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let options = receiver::Options { sink: Some(sink), ..Default::default() };
    let receiver = receiver::Receiver::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
    let org = cli.ok(&["org", "create", "acme"]);
    let run = format!(
        r#"{{"id": "0190a6e8-0000-7000-8000-000000000001", "status_code": "succeeded", "callback_url": "{}"}}"#,
        receiver.url("/hang/7")
    );
    let imported = cli.run_with_input(&["runs", "import", "-", "--org", &org, "--deliver"], &run);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let mut dispatcher = cli.spawn(&["dispatcher"]);
    let line: serde_json::Value =
        serde_json::from_str(&dispatcher.logged("answering health checks")).unwrap();
    let health = format!("http://{}/v1/health", line["listen"].as_str().unwrap());
    arrivals.recv().await.unwrap();
    dispatcher.signal(Signal::TERM);
    let ready = health.replace("v1/health", "health/ready");
    let red = std::iter::repeat_with(|| cli.run(&["healthcheck", &ready])).find(|ended| ended.code == 1);
    let why = red.unwrap().stderr;
    assert!(why.contains("503") && why.contains("stopping"), "{why}");
    cli.ok(&["healthcheck", &health]);
    assert_eq!(dispatcher.ended(), 0);
    assert_eq!(database.number("SELECT count(*) FROM ended_deliveries WHERE status_code = 'succeeded'"), 1);
}

#[tokio::test]
async fn the_api_enforces_the_configured_limits() {
    let database = TestDatabase::new(Backend::Postgres);
    let cli = Cli::on(&database)
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_API__LISTEN", "127.0.0.1:0")
        .with("REDIAL_API__RATE_LIMIT", "1")
        .with("REDIAL_API__RATE_LIMIT_BURST", "2")
        .with("REDIAL_API__AUTH_FAILURE_LIMIT", "1")
        .with("REDIAL_LOG__FORMAT", "json");
    let org = cli.ok(&["org", "create", "test"]);
    let token = cli.ok(&["token", "create", "--org", &org]);
    let mut running = cli.spawn(&["api"]);
    let line: serde_json::Value = serde_json::from_str(&running.logged("serving the API")).unwrap();
    assert!((1..=8192).contains(&line["connections_per_worker"].as_u64().unwrap()), "{line}");

    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("http://{}/v1/runs/x", line["listen"].as_str().unwrap());
    let get = async |token: &str| client.get(&url).bearer_auth(token).send().await.unwrap().status().as_u16();
    let unknown = format!("rf_live_{}", "0".repeat(64));
    assert_eq!((get(&token).await, get(&unknown).await, get(&unknown).await), (422, 401, 429));
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(get(&token).await); // some of them within a second of the first two
    }
    assert!(
        answers.contains(&429) && answers.iter().all(|status| [422, 429].contains(status)),
        "{answers:?}"
    );
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_listen_address_in_use_is_reported_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let database = TestDatabase::new(Backend::Postgres);
    let cli = Cli::on(&database)
        .with("AMQP_URL", &format!("amqp://{AWAY}"))
        .with("REDIAL_API__LISTEN", &taken.local_addr().unwrap().to_string())
        .with("REDIAL_DISPATCHER__LISTEN", &taken.local_addr().unwrap().to_string());
    for service in SERVICES {
        let ended = cli.run(&[service]);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(&format!("{service}.listen")), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn listen_prints_each_callback_with_its_verdict_until_it_is_stopped() {
    let secret = SigningSecret::from_key(&[7; 32]);
    let mut running = Cli::new().spawn(&["listen", "127.0.0.1:0", "--secret", secret.plain()]);
    let line = running.printed("listening on http://");
    let url = line.trim().strip_prefix("listening on ").unwrap();

    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let now = system_now();
    let body = r#"{"event": "run.completed"}"#;
    let signed = sign(&secret, "id", now.unix_seconds(), body.as_bytes());
    let post = client
        .post(format!("{url}/status/503"))
        .header("webhook-id", "id")
        .header("webhook-timestamp", now.unix_seconds())
        .header("webhook-signature", signed.webhook_signature)
        .header("runflow-signature", signed.runflow_signature)
        .body(body);
    assert_eq!(post.send().await.unwrap().status(), 503);
    running.printed("POST /status/503");
    running.printed("signatures valid; answered: 503");

    client.post(format!("{url}/ok")).header("runflow-signature", "00").body(body).send().await.unwrap();
    running.printed("SIGNATURE INVALID");
    assert_eq!(running.stop(), 0);
}

/// Returns this host's time, which the receiver checks against.
fn system_now() -> Timestamp {
    Timestamp::from_micros(0) + std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap()
}

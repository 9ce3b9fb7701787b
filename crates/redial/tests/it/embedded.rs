//! The embedded mode: `redial demo` and `redial dev`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use testkit::Signal;

use crate::cli::{Cli, Running};

/// A demo with the test's own temporary directory.
fn demo() -> Cli {
    let cli = Cli::new();
    let directory = cli.directory().to_str().unwrap().to_owned();
    cli.with("TMPDIR", &directory)
}

fn leftovers(cli: &Cli) -> Vec<String> {
    let entries = std::fs::read_dir(cli.directory()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_demo_shows_bytes_headers_and_history_and_leaves_nothing_behind() {
    let cli = demo();
    let shown = cli.ok(&["demo"]);
    for part in [
        "runflow-signature: ",
        "webhook-signature: v1,",
        "redial-attempt: 1",
        r#"{"event": "run."#,
        "signatures valid; answered: 503",
        "/callback-redeliveries -> 201",
        "http_error: the receiver answered 503 Service Unavailable",
        "Everything was as promised.",
    ] {
        assert!(shown.contains(part), "{part:?} is missing from:\n{shown}");
    }
    assert_eq!(leftovers(&cli), [""; 0]);
}

#[test]
fn a_demo_ended_by_a_signal_at_any_point_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM] {
        for point in ["Redial demo.", "1. ", "recorded; ", "2. ", "3. "] {
            let cli = demo();
            let mut running = cli.spawn(&["demo"]);
            running.printed(point);
            running.signal(signal);
            // Near its end, the demo may finish before the signal arrives.
            let code = running.ended();
            assert!(code == 1 || (code == 0 && point == "3. "), "{code} after {signal:?} at {point:?}");
            assert_eq!(leftovers(&cli), [""; 0], "{signal:?} at {point:?}");
        }
    }
}

#[test]
fn the_directory_of_a_killed_demo_is_removed_by_the_next_one() {
    let cli = demo();
    let mut running = cli.spawn(&["demo"]);
    running.printed("recorded; ");
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    assert_eq!(leftovers(&cli).len(), 1);
    cli.ok(&["demo"]);
    assert_eq!(leftovers(&cli), [""; 0]);
}

#[test]
fn the_directory_of_a_running_demo_is_not_removed_by_another_one() {
    let cli = demo();
    let mut running = cli.spawn(&["demo"]);
    running.printed("recorded; ");
    cli.ok(&["demo"]);
    assert_eq!(running.ended(), 0);
}

const DEV: &[&str] = &["dev", "--listen", "127.0.0.1:0", "--receiver", "127.0.0.1:0", "--data-dir", "data"];

/// Starts `dev` and returns it with its dev.json.
fn dev(cli: &Cli) -> (Running, Value) {
    let mut running = cli.spawn(DEV);
    running.printed("callback-redeliveries");
    let json = std::fs::read(cli.directory().join("data/dev.json")).unwrap();
    (running, serde_json::from_slice(&json).unwrap())
}

async fn call(dev: &Value, method: reqwest::Method, path: &str) -> (u16, Value) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("{}{path}", dev["base_url"].as_str().unwrap());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer =
        client.request(method, url).bearer_auth(dev["token"].as_str().unwrap()).send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn dev_refuses_a_state_file_with_an_unusable_secret_and_does_not_show_it() {
    let cli = Cli::new();
    let (running, mut dev) = dev(&cli);
    assert_eq!(running.stop(), 0);
    dev["signing_secret"] = "whsec_c2hvcnQ=".into();
    std::fs::write(cli.directory().join("data/dev.json"), dev.to_string()).unwrap();
    let ended = cli.run(DEV);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("dev.json") && ended.stderr.contains("16 bytes"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("c2hvcnQ"), "{}", ended.stderr);
}

#[tokio::test]
async fn dev_keeps_its_state_across_restarts() {
    let cli = Cli::new();
    let (mut running, first) = dev(&cli);
    let run = first["run_ids"][0].as_str().unwrap().to_owned();
    let (status, delivery) =
        call(&first, reqwest::Method::POST, &format!("/v1/runs/{run}/callback-redeliveries")).await;
    assert_eq!(status, 201, "{delivery}");
    running.printed("signatures valid; answered: 200");
    assert_eq!(running.stop(), 0);
    for private in ["dev.json", "secrets.key"] {
        assert_eq!(mode(&cli.directory().join("data").join(private)), 0o600, "{private}");
    }

    let (running, second) = dev(&cli);
    // Administrative commands work while it runs.
    let beside =
        Cli::new().with("DATABASE_URL", &format!("sqlite:{}/data/redial.db", cli.directory().display()));
    let org = beside.ok(&["org", "create", "acme"]);
    beside.ok(&["token", "create", "--org", &org]);
    beside.ok(&["secret", "create", "--org", &org]);
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/runs.jsonl");
    assert_eq!(beside.ok(&["runs", "import", examples, "--org", &org]), "320 created, 0 known, 0 bad");
    for kept in ["token", "organization_id", "signing_secret"] {
        assert_eq!(first[kept], second[kept], "{kept}");
    }
    let (status, history) = call(&second, reqwest::Method::GET, &format!("/v1/runs/{run}/callback")).await;
    assert_eq!((status, history[0]["status_code"].as_str()), (200, Some("succeeded")));
    assert_eq!(running.stop(), 0);
}

#[test]
fn two_devs_cannot_share_a_data_directory() {
    let cli = Cli::new();
    let (running, _) = dev(&cli);
    let second = cli.run(DEV);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("another `redial dev` is using data"), "{}", second.stderr);
    assert_eq!(running.stop(), 0);
}

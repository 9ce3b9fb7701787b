//! Commands that call the API, with a running `redial dev`.

use std::process::Stdio;

use serde_json::Value;

use crate::cli::{Cli, Running};

/// Starts `dev` in its own directory. Also returns a run that can be redelivered.
fn dev(cli: &Cli) -> (Running, String) {
    let mut command = cli.command(&["dev", "--listen", "127.0.0.1:0", "--receiver", "127.0.0.1:0"]);
    let mut running = Running::start(command.stderr(Stdio::null()));
    let next = running.printed("redial deliveries redeliver");
    running.printed("redial deliveries list");
    (running, next.split_whitespace().nth(3).unwrap().to_owned())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn runs_and_deliveries_are_listed_shown_redelivered_and_followed() {
    let cli = Cli::new();
    let (running, run) = dev(&cli);
    let runs = lines(&cli.ok(&["runs", "list", "--oldest-first", "--limit", "2"]));
    assert_eq!(runs.len(), 2);
    let succeeded = lines(&cli.ok(&["runs", "list", "--status", "succeeded"]));
    assert!(!succeeded.is_empty() && succeeded.iter().all(|run| run["status_code"] == "succeeded"));

    let once = ["deliveries", "redeliver", &run, "--idempotency-key", "once", "--follow"];
    let followed = lines(&cli.ok(&once));
    let ended = followed.last().unwrap();
    assert_eq!((&ended["status_code"], &ended["run_id"]), (&"succeeded".into(), &run.as_str().into()));
    assert!(ended["attempts"][0]["timing"].is_object());
    let again = lines(&cli.ok(&["deliveries", "redeliver", &run, "--idempotency-key", "once"]));
    assert_eq!(again[0]["id"], ended["id"]);

    let id = ended["id"].as_str().unwrap();
    let shown = lines(&cli.ok(&["deliveries", "show", id]));
    assert_eq!(shown[0]["attempts"], ended["attempts"]);
    let listed = lines(&cli.ok(&["deliveries", "list", "--run", &run, "--automatic", "false"]));
    assert_eq!(listed.iter().map(|delivery| delivery["id"].as_str().unwrap()).collect::<Vec<_>>(), [id]);
    let with_deliveries = lines(&cli.ok(&["runs", "show", &run]));
    assert_eq!((&with_deliveries[0]["id"], &with_deliveries[1]["id"]), (&run.as_str().into(), &id.into()));
    assert_eq!(lines(&cli.ok(&["runs", "show", &run, "--follow"])), with_deliveries, "all have ended");
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_closed_standard_output_is_not_an_error() {
    let cli = Cli::new();
    let (running, _) = dev(&cli);
    let mut command = cli.command(&["runs", "list"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), String::from_utf8_lossy(&ended.stderr).as_ref()), (Some(0), ""));
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_broken_dev_json_is_named() {
    let cli = Cli::new();
    std::fs::create_dir(cli.directory().join(".redial")).unwrap();
    std::fs::write(cli.directory().join(".redial/dev.json"), "{").unwrap();
    let ended = cli.run(&["runs", "list"]);
    assert!(ended.code == 1 && ended.stderr.contains(".redial/dev.json"), "{}", ended.stderr);
}

#[test]
fn errors_say_what_is_wrong_and_what_to_do() {
    let cli = Cli::new();
    for arguments in [["runs", "list"].as_slice(), &["deliveries", "list"]] {
        let ended = cli.run(arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
        assert!(ended.stderr.contains("start `redial dev` here"), "{}", ended.stderr);
    }
    let (running, run) = dev(&cli);
    let dev: Value =
        serde_json::from_slice(&std::fs::read(cli.directory().join(".redial/dev.json")).unwrap()).unwrap();
    let url = dev["base_url"].as_str().unwrap();
    let unknown = format!("rf_live_{}", "0".repeat(64));
    let nobody = "0190a6e8-0000-7000-8000-000000000000";
    for (arguments, word) in [
        (["deliveries", "show", nobody].as_slice(), "CALLBACK_DELIVERY_NOT_FOUND"),
        (&["deliveries", "redeliver", nobody], "RUN_NOT_FOUND"),
        (&["deliveries", "withdraw", nobody], "CALLBACK_DELIVERY_NOT_FOUND"),
        (&["deliveries", "list", "--status", "lost"], "query.status_code"),
        (&["runs", "list", "--base-url", url, "--token", &unknown], "UNAUTHORIZED"),
        (&["runs", "list", "--base-url", "http://127.0.0.1:1", "--token", &unknown], "does not answer"),
        (&["runs", "show", nobody, "--base-url", &format!("{url}/docs"), "--token", &unknown], "NOT_FOUND"),
    ] {
        let ended = cli.run(arguments);
        assert_eq!(ended.code, 1, "{arguments:?}");
        assert!(ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains(&unknown), "{}", ended.stderr);
    }
    for (arguments, word) in [
        (["runs", "list", "--base-url", url], "give --token or set REDIAL_API_TOKEN"),
        (["runs", "list", "--token", &unknown], "but no API"),
        (["deliveries", "list", "--limit", "0"], "--limit"),
    ] {
        let ended = cli.run(&arguments);
        assert!(ended.code == 2 && ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
    }
    for (url, token, word) in [("ftp://x", &*unknown, "--base-url"), (url, "a\nb", "--token")] {
        let ended = cli.run(&["runs", "list", "--base-url", url, "--token", token]);
        assert!(ended.code == 2 && ended.stderr.contains(word), "{}", ended.stderr);
    }
    let by_variables =
        Cli::new().with("REDIAL_API_URL", url).with("REDIAL_API_TOKEN", dev["token"].as_str().unwrap());
    assert!(!by_variables.ok(&["runs", "show", &run]).is_empty());
    assert_eq!(running.stop(), 0);
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let cli = Cli::new();
        std::fs::write(cli.directory().join("redial.toml"), "broken").unwrap();
        let script = cli.ok(&["completions", shell]);
        assert!(script.contains("redeliver") && script.contains("redial"), "{shell}");
    }
}

//! Callbacks of the real services, verified by third-party code.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use receiver::Received;
use reqwest::Method;
use serde_json::json;

use crate::rotation::{call, text};
use crate::system::{System, shared_broker};

#[tokio::test(flavor = "multi_thread")]
async fn pythons_hmac_and_the_standardwebhooks_packages_of_pypi_and_npm_verify_the_callbacks() {
    let mut system = System::start(&shared_broker(), 1, 1, &[]);
    // Covers every kind of payload in the examples.
    let runs = system.import_runs(220, "/ok");
    let (runs, later) = runs.split_at(200);
    system.redeliver_all(runs).await;
    let old = system.secret.clone();
    let mut lines: Vec<String> =
        system.gather(runs.len()).await.iter().map(|received| line(&old, &[], received)).collect();
    // During the overlap of a rotation, a receiver needs only one of the two secrets.
    let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
    let path = format!("/v1/callback-secrets/{}", text(&made["id"]));
    call(&system, Method::PATCH, &path, Some(json!({"is_current": true}))).await;
    let new = text(&made["plain_secret"]);
    system.redeliver_all(later).await;
    lines.extend(system.gather(later.len()).await.iter().map(|received| line(&new, &[&old], received)));
    let packages = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../test-packages");
    let script = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let python = packages.join("bin/python3");
    assert_eq!(verified(&python, &script("verify.py"), &packages, &lines), lines.len());
    assert_eq!(verified(Path::new("node"), &script("verify.cjs"), &packages, &lines), lines.len());
    assert!(system.stop().await.is_empty());
}

/// Formats a callback as input of the verifier. `overlap` are secrets that only `webhook-signature` must
/// match.
fn line(secret: &str, overlap: &[&str], received: &Received) -> String {
    let headers: HashMap<_, _> = received.headers.iter().cloned().collect();
    let body = STANDARD.encode(&received.body);
    json!({"secret": secret, "overlap": overlap, "headers": headers, "body": body}).to_string()
}

fn verified(interpreter: &Path, script: &PathBuf, packages: &Path, lines: &[String]) -> usize {
    let mut child = Command::new(interpreter)
        .arg(script)
        .env("NODE_PATH", packages.join("node_modules"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{}: {error}; run scripts/test-packages first", interpreter.display())
        });
    let mut input = child.stdin.take().unwrap();
    for line in lines {
        writeln!(input, "{line}").expect("the verifier reads all lines; its error is above");
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} refuses a callback", script.display());
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

//! Callbacks of the real services, verified by code nobody here wrote.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use receiver::Received;
use serde_json::json;

use crate::system::{System, shared_broker};

#[tokio::test(flavor = "multi_thread")]
async fn pythons_hmac_and_the_standardwebhooks_packages_of_pypi_and_npm_verify_the_callbacks() {
    let mut system = System::start(&shared_broker(), 1, 1, &[]);
    // Every kind of payload the examples have.
    let runs = system.import_runs(200, "/ok");
    system.redeliver_all(&runs).await;
    let secret = system.secret.clone();
    let lines: Vec<String> =
        system.gather(runs.len()).await.iter().map(|received| line(&secret, received)).collect();
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-packages");
    let script = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
    let python = packages.join("bin/python3");
    assert_eq!(verified(&python, &script("verify.py"), &packages, &lines), lines.len());
    assert_eq!(verified(Path::new("node"), &script("verify.cjs"), &packages, &lines), lines.len());
    assert!(system.stop().await.is_empty());
}

fn line(secret: &str, received: &Received) -> String {
    let headers: HashMap<_, _> = received.headers.iter().cloned().collect();
    json!({"secret": secret, "headers": headers, "body": STANDARD.encode(&received.body)}).to_string()
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
        writeln!(input, "{line}").expect("the verifier reads all lines; its complaint is above");
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{} refuses a callback", script.display());
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

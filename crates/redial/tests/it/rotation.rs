//! Secrets that are rotated under load, and what of them and of other credentials can be found at rest.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::{SigningSecret, sign};
use receiver::Verdict;
use reqwest::Method;
use serde_json::{Value, json};
use store::DatabaseUrl;

use crate::system::{System, shared_broker};

/// `secrets.keys` of every [`System`].
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::test(flavor = "multi_thread")]
async fn every_callback_is_signed_with_the_secret_it_was_frozen_with_and_none_is_in_clear_anywhere() {
    let mut system = System::start(&shared_broker(), 2, 2, &[("REDIAL_LOG__FILTER", "debug")]);
    let runs = system.import_runs(600, "/ok");
    let first = call(&system, Method::GET, "/v1/callback-secrets", None).await["items"][0]["id"].clone();
    let mut secrets = HashMap::from([(text(&first), system.secret.clone())]);
    let rotation = async {
        let mut current = text(&first);
        for _ in 0..6 {
            let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
            let path = format!("/v1/callback-secrets/{}", text(&made["id"]));
            call(&system, Method::PATCH, &path, Some(json!({"is_current": true}))).await;
            call(&system, Method::DELETE, &format!("/v1/callback-secrets/{current}"), None).await;
            current = text(&made["id"]);
            secrets.insert(current.clone(), text(&made["plain_secret"]));
        }
    };
    // The load lasts longer than the rotation.
    let (accepted, ()) = tokio::join!(system.redeliver_all(&runs), rotation);
    let frozen: HashMap<String, String> = accepted
        .iter()
        .map(|delivery| (text(&delivery["id"]), text(&delivery["signing_secret_id"])))
        .collect();
    for received in system.gather(runs.len()).await {
        let header = |name| received.header(name).unwrap();
        let secret = SigningSecret::parse(&secrets[&frozen[header("webhook-id")]]).unwrap();
        let timestamp = header("webhook-timestamp").parse().unwrap();
        let signed = sign(&secret, header("webhook-id"), timestamp, &received.body);
        assert_eq!(header("runflow-signature"), signed.runflow_signature);
        assert_eq!(header("webhook-signature"), signed.webhook_signature);
    }
    let used: std::collections::HashSet<_> = frozen.values().collect();
    assert!(used.len() > 1, "the rotation came too late");

    let DatabaseUrl::Postgres(url) = system.database.url() else { unreachable!("as System makes it") };
    let dump = Command::new("pg_dump").arg(url).output().expect("tests need pg_dump");
    assert!(dump.status.success(), "{dump:?}");
    let (dump, logs) = (String::from_utf8(dump.stdout).unwrap(), system.logs.clone());
    let (token, org) = (system.token.clone(), system.org.clone());
    assert!(system.stop().await.is_empty());
    let logs = logs.lock().unwrap();
    let found = |hidden: &str| dump.contains(hidden) || logs.contains(hidden);
    assert!(dump.contains(&org) && logs.contains(&org), "the search finds what is there");
    for secret in secrets.values() {
        let encoded = secret.strip_prefix("whsec_").unwrap();
        let raw = STANDARD.decode(encoded).unwrap();
        // bytea is dumped in hexadecimal digits.
        for hidden in [encoded.to_owned(), hex(&raw), hex(secret.as_bytes()), hex(encoded.as_bytes())] {
            assert!(!found(&hidden), "a secret is in clear");
        }
    }
    let digits = token.strip_prefix("rf_live_").unwrap();
    for hidden in [digits, &hex(token.as_bytes()), KEY, &hex(&STANDARD.decode(KEY).unwrap())] {
        assert!(!found(hidden), "a token or a key is in clear");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_finds_a_key_that_was_added_to_its_file_while_it_runs() {
    let mut system = System::start(&shared_broker(), 0, 0, &[]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("redial.toml");
    let old = format!("test:{KEY}");
    let new = store::Keyring::generate("new");
    std::fs::write(&file, format!("[secrets]\nkeys = [{old:?}]\n")).unwrap();
    system.add_dispatcher_with(&file);

    std::fs::write(&file, format!("[secrets]\nkeys = [{:?}, {old:?}]\n", new.as_str())).unwrap();
    system.set("REDIAL_SECRETS__KEYS", &format!("{},{old}", new.as_str()));
    system.add_api();
    let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
    let path = format!("/v1/callback-secrets/{}", text(&made["id"]));
    call(&system, Method::PATCH, &path, Some(json!({"is_current": true}))).await;
    system.receiver.add_secret(SigningSecret::parse(&text(&made["plain_secret"])).unwrap());

    let run = system.import_runs(4, "/ok")[0];
    let delivery = system.redeliver(0, run).await;
    assert_eq!(delivery["signing_secret_id"], made["id"]);
    let settled = system.settled(&text(&delivery["id"])).await;
    assert_eq!((&settled["status_code"], &settled["attempt_count"]), (&json!("succeeded"), &json!(1)));
    assert_eq!(system.gather(1).await[0].verdict, Verdict::Valid);
    assert!(system.stop().await.is_empty());
}

async fn call(system: &System, method: Method, path: &str, body: Option<Value>) -> Value {
    let request = system.http.request(method, system.url(0, path)).bearer_auth(&system.token);
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let response = request.send().await.unwrap();
    assert!(response.status().is_success(), "{path}: {}", response.status());
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Secrets rotated under load, and a search for secrets, tokens and keys in clear in the database and the
//! logs.

use std::collections::HashMap;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::{SigningSecret, sign};
use receiver::{Received, Verdict};
use reqwest::Method;
use serde_json::{Value, json};
use store::DatabaseUrl;

use crate::system::{System, shared_broker};

/// Key in the `secrets.keys` of every [`System`], without its name.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_signs_each_callback_with_its_own_or_a_later_secret_and_leaks_no_secret() {
    let mut system = System::start(&shared_broker(), 2, 2, &[("REDIAL_LOG__FILTER", "debug")]);
    let runs = system.import_runs(600, "/ok");
    let first = call(&system, Method::GET, "/v1/callback-secrets", None).await["items"][0]["id"].clone();
    let mut secrets = vec![(text(&first), system.secret.clone())];
    let rotation = async {
        let mut current = text(&first);
        for _ in 0..6 {
            let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
            let path = format!("/v1/callback-secrets/{}", text(&made["id"]));
            call(&system, Method::PATCH, &path, Some(json!({"is_current": true}))).await;
            call(&system, Method::DELETE, &format!("/v1/callback-secrets/{current}"), None).await;
            current = text(&made["id"]);
            secrets.push((current.clone(), text(&made["plain_secret"])));
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
        let own = secrets.iter().position(|(id, _)| *id == frozen[header("webhook-id")]).unwrap();
        let timestamp = header("webhook-timestamp").parse().unwrap();
        let is_signed_with = |(_, secret): &(String, String)| {
            let secret = SigningSecret::parse(secret).unwrap();
            let signed = sign(&secret, header("webhook-id"), timestamp, &received.body);
            header("runflow-signature") == signed.runflow_signature
                && header("webhook-signature").split(' ').any(|one| one == signed.webhook_signature)
        };
        assert!(secrets[own..].iter().any(is_signed_with), "{received:?}");
    }
    let used: std::collections::HashSet<_> = frozen.values().collect();
    assert!(used.len() > 1, "the rotation came too late");

    let DatabaseUrl::Postgres(url) = system.database.url() else { unreachable!("System uses PostgreSQL") };
    let dump = Command::new("pg_dump").arg(url).output().expect("tests need pg_dump");
    assert!(dump.status.success(), "{dump:?}");
    let (dump, logs) = (String::from_utf8(dump.stdout).unwrap(), system.logs.clone());
    let (token, org) = (system.token.clone(), system.org.clone());
    assert!(system.stop().await.is_empty());
    let logs = logs.lock().unwrap();
    let found = |hidden: &str| dump.contains(hidden) || logs.contains(hidden);
    assert!(dump.contains(&org) && logs.contains(&org), "the search finds text that is there");
    for (_, secret) in &secrets {
        let encoded = secret.strip_prefix("whsec_").unwrap();
        let raw = STANDARD.decode(encoded).unwrap();
        // pg_dump writes bytea in hexadecimal digits.
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
async fn a_running_dispatcher_reads_a_key_that_was_added_to_its_file() {
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

/// As in the README: the new key is last everywhere, then first everywhere, and the old one is removed when
/// all secrets are rewrapped. Services are replaced one at a time, so that at each step some still have the
/// keys of the step before.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_encryption_key_is_changed_every_service_opens_what_any_other_has_sealed() {
    let mut system = System::start(&shared_broker(), 1, 1, &[]);
    let (old, new) = (format!("test:{KEY}"), store::Keyring::generate("new").as_str().to_owned());
    let mut runs = system.import_runs(6, "/ok").into_iter();
    for keys in [format!("{old},{new}"), format!("{new},{old}"), new.clone()] {
        if keys == new {
            system.command(&["secrets", "rewrap"]);
        }
        system.set("REDIAL_SECRETS__KEYS", &keys);
        system.add_api();
        // Sealed by the previous step's api, then by this step's; opened by either dispatcher.
        for replaced in ["api", "dispatcher"] {
            let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
            let path = format!("/v1/callback-secrets/{}", text(&made["id"]));
            call(&system, Method::PATCH, &path, Some(json!({"is_current": true}))).await;
            system.receiver.add_secret(SigningSecret::parse(&text(&made["plain_secret"])).unwrap());
            let delivery = system.redeliver(0, runs.next().unwrap()).await;
            let settled = system.settled(&text(&delivery["id"])).await;
            assert_eq!(
                (&settled["status_code"], &settled["attempt_count"]),
                (&json!("succeeded"), &json!(1))
            );
            assert_eq!(system.gather(1).await[0].verdict, Verdict::Valid);
            match replaced {
                "api" => system.apis.remove(0).stop(),
                _ => {
                    system.add_dispatcher();
                    system.dispatchers.remove(0).stop();
                }
            }
        }
    }
    assert!(system.stop().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_waits_during_a_rotation_always_verifies_with_the_secrets_its_receiver_has() {
    let settings = [("REDIAL_DELIVERY__SCHEDULE", "200ms"), ("REDIAL_DELIVERY__MAX_ATTEMPTS", "100")];
    let mut system = System::start(&shared_broker(), 1, 1, &settings);
    let old = SigningSecret::parse(&system.secret).unwrap();
    let secrets = call(&system, Method::GET, "/v1/callback-secrets", None).await;
    let old_path = format!("/v1/callback-secrets/{}", text(&secrets["items"][0]["id"]));
    let runs = system.import_runs(4, "/status/503");
    let delivery = system.redeliver(0, runs[0]).await;
    let first = arrival_of(&mut system, &delivery).await;
    assert_eq!(first.verdict, Verdict::Valid);
    assert_eq!(signatures(&first, &[&old]), (Some(0), vec![Some(0)]));

    let made = call(&system, Method::POST, "/v1/callback-secrets", Some(json!({}))).await;
    let new = SigningSecret::parse(&text(&made["plain_secret"])).unwrap();
    let new_path = format!("/v1/callback-secrets/{}", text(&made["id"]));
    call(&system, Method::PATCH, &new_path, Some(json!({"is_current": true}))).await;
    let known = [&new, &old];
    // The receiver does not know the new secret yet.
    loop {
        let received = arrival_of(&mut system, &delivery).await;
        assert_eq!(received.verdict, Verdict::Valid);
        match signatures(&received, &known) {
            (Some(1), list) if list == [Some(1)] => {}
            found => break assert_eq!(found, (Some(1), vec![Some(0), Some(1)])),
        }
    }
    let fresh = system.redeliver(0, runs[1]).await;
    assert_eq!(fresh["signing_secret_id"], made["id"]);
    let received = arrival_of(&mut system, &fresh).await;
    assert_eq!(received.verdict, Verdict::WebhookValid);
    assert_eq!(signatures(&received, &known), (Some(0), vec![Some(0), Some(1)]));

    call(&system, Method::DELETE, &old_path, None).await;
    // Now the receiver knows only the new one.
    loop {
        let received = arrival_of(&mut system, &delivery).await;
        match signatures(&received, &known) {
            (Some(1), list) if list == [Some(0), Some(1)] => {}
            found => break assert_eq!(found, (Some(0), vec![Some(0)])),
        }
    }
    let delivery = system.delivery(&text(&delivery["id"])).await;
    assert_eq!(delivery["signing_secret_id"], secrets["items"][0]["id"], "what it was frozen with");
    system.stop().await;
}

/// Returns the delivery's next callback; skips those of other deliveries.
async fn arrival_of(system: &mut System, delivery: &Value) -> Received {
    loop {
        let received = system.gather(1).await.remove(0);
        if received.header("webhook-id") == delivery["id"].as_str() {
            return received;
        }
    }
}

/// Returns the index in `known` of the secret that made `Runflow-Signature`, and of each in
/// `webhook-signature`.
fn signatures(received: &Received, known: &[&SigningSecret]) -> (Option<usize>, Vec<Option<usize>>) {
    let header = |name| received.header(name).unwrap();
    let timestamp = header("webhook-timestamp").parse().unwrap();
    let signed: Vec<_> =
        known.iter().map(|secret| sign(secret, header("webhook-id"), timestamp, &received.body)).collect();
    let runflow = signed.iter().position(|signed| signed.runflow_signature == header("runflow-signature"));
    let list = header("webhook-signature").split(' ');
    (runflow, list.map(|one| signed.iter().position(|signed| signed.webhook_signature == one)).collect())
}

pub(crate) async fn call(system: &System, method: Method, path: &str, body: Option<Value>) -> Value {
    let request = system.http.request(method, system.url(0, path)).bearer_auth(&system.token);
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let response = request.send().await.unwrap();
    assert!(response.status().is_success(), "{path}: {}", response.status());
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

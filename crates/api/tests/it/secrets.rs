//! Signing secrets.

use std::time::Duration;

use contracts::SigningSecret;
use futures_util::future::join_all;
use reqwest::Method;
use uuid::Uuid;

use crate::harness::{Reply, TestApi, send};

testkit::on_both_backends!(
    a_secret_is_shown_once_with_its_plain_text_first,
    only_the_first_secret_becomes_current,
    a_body_with_anything_but_a_label_is_refused,
    a_secret_stays_readable_without_its_plain_text,
    a_label_is_set_and_cleared,
    new_deliveries_use_the_promoted_secret,
    deleting_the_current_secret_makes_the_newest_enabled_one_current,
    a_deleted_secret_stays_readable_and_cannot_be_promoted,
    an_update_of_anything_else_is_refused_and_changes_nothing,
    an_unknown_or_foreign_secret_is_not_found,
    exactly_one_enabled_secret_is_current_after_concurrent_changes,
    a_repeated_creation_shows_the_same_secret,
);

const PATH: &str = "/v1/callback-secrets";

async fn create(api: &TestApi) -> Reply {
    let reply = api.post(PATH, "").await;
    assert_eq!(reply.status, 201);
    api.clock.advance(Duration::from_secs(1));
    reply
}

fn path(secret: &Reply) -> String {
    format!("{PATH}/{}", secret.json()["id"].as_str().unwrap())
}

async fn patch(api: &TestApi, secret: &Reply, body: &'static str) -> Reply {
    let request = api.request(Method::PATCH, &path(secret)).header("content-type", "application/json");
    send(request.body(body)).await
}

/// Deletes a secret and checks that the response is an empty 204.
async fn delete(api: &TestApi, secret: &Reply) {
    let answer = api.request(Method::DELETE, &path(secret)).send().await.unwrap();
    assert_eq!(answer.status(), 204);
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(answer.bytes().await.unwrap().len(), 0);
}

async fn is_current(api: &TestApi, secret: &Reply) -> bool {
    api.get(&path(secret)).await.json()["is_current"].as_bool().unwrap()
}

async fn a_secret_stays_readable_without_its_plain_text(api: TestApi) {
    let made = create(&api).await;
    let shown = api.get(&path(&made)).await;
    assert_eq!(shown.status, 200);
    let plain = format!(r#"{{"plain_secret":{},"#, made.json()["plain_secret"]);
    assert_eq!(made.text.replace(&plain, "{"), shown.text);
}

async fn a_label_is_set_and_cleared(api: TestApi) {
    let made = create(&api).await;
    let labelled = patch(&api, &made, r#"{"label": "prod"}"#).await;
    assert_eq!((labelled.status, &labelled.json()["label"]), (200, &"prod".into()));
    assert_eq!(labelled.json()["updated_at"], "2026-01-02T03:04:06.678000Z");
    assert_eq!(labelled.json()["created_at"], "2026-01-02T03:04:05.678000Z");
    assert_eq!(api.get(&path(&made)).await.text, labelled.text);
    api.clock.advance(Duration::from_secs(1));
    assert_eq!(patch(&api, &made, r#"{"label": "prod"}"#).await.text, labelled.text); // nothing changed
    assert_eq!(patch(&api, &made, r#"{"label": null}"#).await.json()["label"], serde_json::Value::Null);
}

async fn new_deliveries_use_the_promoted_secret(mut api: TestApi) {
    let (first, second) = (create(&api).await, create(&api).await);
    let promoted = patch(&api, &second, r#"{"is_current": true}"#).await;
    assert_eq!((promoted.status, &promoted.json()["is_current"]), (200, &true.into()));
    assert!(!is_current(&api, &first).await);
    api.delivered_run().await;
    let accepted = api.redeliver().await;
    assert_eq!(accepted.json()["signing_secret_id"], second.json()["id"]);
    api.doorbell().await;
}

async fn deleting_the_current_secret_makes_the_newest_enabled_one_current(mut api: TestApi) {
    let secrets = [create(&api).await, create(&api).await, create(&api).await];
    let [first, second, third] = &secrets;
    delete(&api, second).await; // not the current one
    assert!(is_current(&api, first).await);
    delete(&api, first).await;
    assert!(is_current(&api, third).await);
    delete(&api, third).await;
    for secret in &secrets {
        assert!(!is_current(&api, secret).await);
    }
    api.delivered_run().await;
    assert_eq!(api.redeliver().await.json()["signing_secret_id"], serde_json::Value::Null);
    api.doorbell().await;
    let next = create(&api).await;
    assert!(is_current(&api, &next).await, "the only enabled one");
}

async fn a_deleted_secret_stays_readable_and_cannot_be_promoted(api: TestApi) {
    let made = create(&api).await;
    delete(&api, &made).await;
    let deleted = api.get(&path(&made)).await;
    assert_eq!(deleted.json()["disabled_at"], "2026-01-02T03:04:06.678000Z");
    api.clock.advance(Duration::from_secs(1));
    delete(&api, &made).await;
    let refused = patch(&api, &made, r#"{"is_current": true, "label": "x"}"#).await;
    assert_eq!(refused.invalid(), ["body.is_current secret_disabled"]);
    assert_eq!(api.get(&path(&made)).await.text, deleted.text);
}

async fn an_update_of_anything_else_is_refused_and_changes_nothing(api: TestApi) {
    let made = create(&api).await;
    let before = api.get(&path(&made)).await.text;
    for (body, expected) in [
        ("{}", &["body missing"][..]),
        ("[]", &["body object_type"]),
        (r#"{"is_current": false}"#, &["body.is_current literal_error"]),
        (r#"{"is_current": null}"#, &["body.is_current literal_error"]),
        (
            r#"{"label": "x", "is_current": "true", "id": 1}"#,
            &["body.is_current literal_error", "body.id extra_forbidden"],
        ),
    ] {
        assert_eq!(patch(&api, &made, body).await.invalid(), expected, "{body}");
    }
    assert_eq!(api.get(&path(&made)).await.text, before);
}

async fn an_unknown_or_foreign_secret_is_not_found(mut api: TestApi) {
    let foreign = create(&api).await;
    let before = api.get(&path(&foreign)).await.text;
    let (ours, other) = (api.token.clone(), api.another_organization().await.1);
    api.token = other;
    for method in [Method::GET, Method::PATCH, Method::DELETE] {
        let ask = async |path: &str| {
            let request = api.request(method.clone(), path).header("content-type", "application/json");
            send(request.header("x-request-id", "same").body(r#"{"label": "x"}"#)).await
        };
        let (unknown, hidden) = (ask(&format!("{PATH}/{}", Uuid::nil())).await, ask(&path(&foreign)).await);
        assert_eq!(unknown.error(), (404, "CALLBACK_SECRET_NOT_FOUND".into()));
        assert_eq!(unknown.text, hidden.text);
    }
    api.token = ours;
    assert_eq!(api.get(&path(&foreign)).await.text, before);
}

async fn exactly_one_enabled_secret_is_current_after_concurrent_changes(api: TestApi) {
    let secrets = join_all((0..6).map(|_| create(&api))).await;
    let (doomed, kept) = secrets.split_at(3);
    let promotions = join_all((0..24).map(|i| patch(&api, &secrets[i % 6], r#"{"is_current": true}"#)));
    let deletions = join_all(doomed.iter().map(|secret| delete(&api, secret)));
    let creations = join_all((0..4).map(|_| create(&api)));
    let (promoted, _, created) = tokio::join!(promotions, deletions, creations);
    for reply in promoted {
        assert!([200, 422].contains(&reply.status), "{}", reply.text);
    }
    let mut current = Vec::new();
    for secret in secrets.iter().chain(&created) {
        current.extend(is_current(&api, secret).await.then(|| secret.json()["id"].clone()));
    }
    assert_eq!(current.len(), 1, "{current:?}");
    assert!(kept.iter().chain(&created).any(|secret| secret.json()["id"] == current[0]));
}

async fn a_repeated_creation_shows_the_same_secret(api: TestApi) {
    let ask = async |body: &'static str| {
        let request = api.request(Method::POST, PATH).header("content-type", "application/json");
        send(request.header("idempotency-key", "k-1").body(body)).await
    };
    let first = ask(r#"{"label": "prod"}"#).await;
    assert_eq!(first.status, 201);
    api.clock.advance(Duration::from_secs(1));
    patch(&api, &first, r#"{"label": "old"}"#).await;
    delete(&api, &first).await;
    let again = ask(r#"{"label": "prod"}"#).await;
    assert_eq!((again.status, again.text), (201, first.text));
    assert_eq!(ask(r#"{"label": "other"}"#).await.error(), (409, "CONFLICT".into()));
    let second = create(&api).await;
    assert!(is_current(&api, &second).await, "the only other secret");
}

async fn a_secret_is_shown_once_with_its_plain_text_first(api: TestApi) {
    let reply = api.post(PATH, r#"{"label": "prod"}"#).await;
    assert_eq!(reply.status, 201);
    let shown = reply.json();
    let plain = shown["plain_secret"].as_str().unwrap();
    assert_eq!(SigningSecret::parse(plain).unwrap().key().len(), 32);
    assert_eq!(shown["key_prefix"], plain[..12]);
    let id = shown["id"].as_str().unwrap();
    let hide: [(&str, &dyn std::fmt::Display); 4] =
        [("plain", &plain), ("prefix", &&plain[..12]), ("id", &id), ("org", &api.org)];
    insta::assert_snapshot!("secret_created", reply.shown(&hide));
}

async fn only_the_first_secret_becomes_current(api: TestApi) {
    let bare = send(api.request(Method::POST, PATH)).await;
    assert_eq!((&bare.json()["is_current"], &bare.json()["label"]), (&true.into(), &().into()));
    let longest = format!(r#"{{"label": "{}"}}"#, "é".repeat(255));
    let second = api.request(Method::POST, PATH).header("content-type", "application/json").body(longest);
    let second = send(second).await;
    assert_eq!((second.status, &second.json()["is_current"]), (201, &false.into()));
}

async fn a_body_with_anything_but_a_label_is_refused(api: TestApi) {
    for (body, expected) in [
        ("[]", &["body object_type"][..]),
        (
            r#"{"label": 1, "is_current": true}"#,
            &["body.label string_type", "body.is_current extra_forbidden"],
        ),
        (r#"{"label": "a\u0000b"}"#, &["body.label null_character"]),
        (r#"{"label": null, "plain_secret": "x"}"#, &["body.plain_secret extra_forbidden"]),
    ] {
        assert_eq!(api.post(PATH, body).await.invalid(), expected, "{body}");
    }
    let too_long = format!(r#"{{"label": "{}"}}"#, "a".repeat(256));
    let request = api.request(Method::POST, PATH).header("content-type", "application/json").body(too_long);
    assert_eq!(send(request).await.invalid(), ["body.label string_too_long"]);
    assert_eq!(api.post(PATH, "").await.json()["is_current"], true); // the refused requests created no secret
}

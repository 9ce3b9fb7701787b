//! Making signing secrets.

use contracts::SigningSecret;
use reqwest::Method;

use crate::harness::{TestApi, on_both_engines, send};

on_both_engines!(
    a_secret_is_shown_once_with_its_plain_text_first,
    only_the_first_secret_becomes_current,
    a_body_with_anything_but_a_label_is_refused,
);

const PATH: &str = "/v1/callback-secrets";

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
    assert_eq!(api.post(PATH, "").await.json()["is_current"], true); // none was made before
}

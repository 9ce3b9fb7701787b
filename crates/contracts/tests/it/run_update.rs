//! The body of `PUT /v1/runs/{run_id}` (contract section 3).

use contracts::{FieldError, Loc, OrgId, RunId, RunStatus, RunUpdate, Timestamp};

fn moment(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// Returns the location and kind of every error.
fn refusals(body: &str) -> Vec<(String, &'static str)> {
    let place = |error: FieldError| {
        let steps = error.loc.iter().map(|step| match step {
            Loc::Key(key) => key.clone(),
            Loc::Index(index) => index.to_string(),
        });
        (steps.collect::<Vec<_>>().join("."), error.kind.into())
    };
    RunUpdate::parse(body.as_bytes()).expect_err("should be refused").into_iter().map(place).collect()
}

/// Returns the errors of a body that is valid except for these members.
fn refusals_with(members: &str) -> Vec<(String, &'static str)> {
    refusals(&format!(r#"{{"status_code": "running", {members}}}"#))
}

fn one(loc: &str, kind: &'static str) -> Vec<(String, &'static str)> {
    vec![(loc.to_owned(), kind)]
}

#[test]
fn a_full_body_is_read_field_by_field() {
    let body = r#"{"status_code": "partial_succeeded", "output": [1.50, "\u0000é"], "duration_ms": 123,
        "created_at": "2023-11-07T05:31:56Z", "started_at": "2023-11-07T07:31:57+02:00",
        "completed_at": "2023-11-07T05:31:58.25Z", "callback_url": "https://example.com/", "metadata": {"a": -0},
        "failure_code": "c", "failure_message": "m", "failure_stage_code": "s"}"#;
    let update = RunUpdate::parse(body.as_bytes()).unwrap();
    assert_eq!(update.status_code, RunStatus::PartialSucceeded);
    assert_eq!(update.output.unwrap().as_str(), r#"[1.5,"\u0000é"]"#);
    assert_eq!(update.duration_ms, Some(123));
    assert_eq!(update.created_at, Some(moment("2023-11-07T05:31:56Z")));
    assert_eq!(update.started_at, Some(moment("2023-11-07T05:31:57Z")));
    assert_eq!(update.completed_at, Some(moment("2023-11-07T05:31:58.25Z")));
    assert_eq!(update.callback_url.as_deref(), Some("https://example.com/"));
    assert_eq!(update.metadata.unwrap().as_str(), r#"{"a":0}"#);
    assert_eq!(update.failure_code.as_deref(), Some("c"));
    assert_eq!(update.failure_message.as_deref(), Some("m"));
    assert_eq!(update.failure_stage_code.as_deref(), Some("s"));
}

#[test]
fn null_is_the_same_as_absent() {
    let nulls = r#"{"status_code": "queued", "output": null, "duration_ms": null, "created_at": null,
        "started_at": null, "completed_at": null, "callback_url": null, "metadata": null, "failure_code": null,
        "failure_message": null, "failure_stage_code": null}"#;
    assert_eq!(RunUpdate::parse(nulls.as_bytes()), RunUpdate::parse(br#"{"status_code": "queued"}"#));
}

#[test]
fn all_errors_are_reported_at_once() {
    let body = r#"{"status_code": "done", "duration_ms": 1.5, "created_at": "2023-11-07T05:31:56", "callback_url": 1,
        "metadata": [], "id": "x", "updated_at": null}"#;
    let expected = [
        ("body.status_code", "enum"),
        ("body.duration_ms", "int_type"),
        ("body.created_at", "datetime_invalid"),
        ("body.callback_url", "string_type"),
        ("body.metadata", "object_type"),
        ("body.id", "extra_forbidden"),
        ("body.updated_at", "extra_forbidden"),
    ];
    assert_eq!(refusals(body), expected.map(|(loc, kind)| (loc.to_owned(), kind)));
}

#[test]
fn the_status_is_required_and_must_be_a_known_one() {
    assert_eq!(refusals("{}"), one("body.status_code", "missing"));
    assert_eq!(refusals(r#"{"status_code": null}"#), one("body.status_code", "string_type"));
    assert_eq!(refusals(r#"{"status_code": "cancelled"}"#), one("body.status_code", "enum"));
}

#[test]
fn a_duration_is_a_non_negative_integer() {
    for (value, kind) in [
        ("-1", "greater_than_equal"),
        ("-99999999999999999999", "greater_than_equal"),
        ("9223372036854775808", "int_type"),
        ("1.5", "int_type"),
        ("-1.0", "int_type"),
        ("1e16", "int_type"),
        ("\"1\"", "int_type"),
        ("true", "int_type"),
    ] {
        assert_eq!(
            refusals_with(&format!(r#""duration_ms": {value}"#)),
            one("body.duration_ms", kind),
            "{value}"
        );
    }
    for (value, millis) in [("-0", 0), ("123.0", 123), ("9223372036854775807", i64::MAX)] {
        let body = format!(r#"{{"status_code": "running", "duration_ms": {value}}}"#);
        assert_eq!(RunUpdate::parse(body.as_bytes()).unwrap().duration_ms, Some(millis));
    }
}

#[test]
fn text_with_nul_is_refused() {
    for field in ["failure_code", "failure_message", "failure_stage_code", "callback_url"] {
        assert_eq!(
            refusals_with(&format!(r#""{field}": "a\u0000""#)),
            one(&format!("body.{field}"), "null_character")
        );
    }
}

#[test]
fn a_callback_url_has_at_most_2048_characters() {
    let body = |length| format!(r#""callback_url": "{}""#, "é".repeat(length));
    assert!(RunUpdate::parse(format!(r#"{{"status_code": "running", {}}}"#, body(2_048)).as_bytes()).is_ok());
    assert_eq!(refusals_with(&body(2_049)), one("body.callback_url", "string_too_long"));
}

#[test]
fn a_body_that_is_not_a_json_object_is_refused() {
    assert_eq!(refusals("[]"), one("body", "object_type"));
    assert_eq!(refusals("{\"status_code\": }"), one("body.16", "json_invalid"));
    assert_eq!(refusals(""), one("body.0", "json_invalid"));
}

#[test]
fn a_value_may_be_nested_100_deep() {
    let body = |depth| {
        format!(r#"{{"status_code": "running", "output": {}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let output = RunUpdate::parse(body(100).as_bytes()).unwrap().output.unwrap();
    assert!(output.to_json().is_ok());
    assert_eq!(refusals(&body(101)), one("body.137", "json_invalid"));
}

#[test]
fn missing_required_timestamps_become_now() {
    let (created, now) = (moment("2023-11-07T05:31:56Z"), moment("2023-11-07T06:00:00Z"));
    let (org_id, id) = (OrgId::new(now), RunId::new(now));
    let run = |body: &str| RunUpdate::parse(body.as_bytes()).unwrap().into_run(org_id, id, now);

    let ended = run(r#"{"status_code": "failed", "created_at": "2023-11-07T05:31:56Z"}"#);
    assert_eq!((ended.created_at, ended.completed_at, ended.updated_at), (created, Some(now), now));
    assert_eq!((ended.org_id, ended.id, ended.started_at), (org_id, id, None));

    let running = run(r#"{"status_code": "running"}"#);
    assert_eq!((running.created_at, running.completed_at), (now, None));

    let told = run(r#"{"status_code": "succeeded", "completed_at": "2023-11-07T05:31:56Z"}"#);
    assert_eq!(told.completed_at, Some(created));
}

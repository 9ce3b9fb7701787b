//! The callback's body (contract section 2).

use contracts::{
    CallbackPayload, Event, JsonText, OrgId, PayloadError, PayloadFormat, Run, RunId, RunStatus, Timestamp,
};
use sha2::{Digest as _, Sha256};

fn run(status_code: RunStatus) -> Run {
    let moment = Timestamp::parse("2023-11-07T05:31:56Z").unwrap();
    Run {
        id: "3c90c3cc-0d44-4b50-8888-8dd25736052a".parse::<RunId>().unwrap(),
        org_id: OrgId::new(moment),
        status_code,
        output: Some(JsonText::from_trusted("{}")),
        duration_ms: Some(123),
        created_at: moment,
        started_at: None,
        completed_at: Some(moment),
        callback_url: None,
        metadata: Some(JsonText::from_trusted("{}")),
        failure_code: None,
        failure_message: None,
        failure_stage_code: None,
        updated_at: moment,
    }
}

fn text(run: &Run, format: PayloadFormat) -> String {
    CallbackPayload::of(run).unwrap().to_text(format)
}

#[test]
fn the_reference_body_is_reproduced_byte_for_byte() {
    let body = text(&run(RunStatus::Succeeded), PayloadFormat::Python);
    assert_eq!(
        body,
        r#"{"event": "run.completed", "run_id": "3c90c3cc-0d44-4b50-8888-8dd25736052a", "status": "succeeded", "output": {}, "duration_ms": 123, "created_at": "2023-11-07T05:31:56+00:00", "completed_at": "2023-11-07T05:31:56+00:00", "metadata": {}}"#
    );
    assert_eq!(body.len(), 237);
    assert_eq!(
        hex::encode(Sha256::digest(&body)),
        "03f8e4466c223eb58ed7fd33a0c17fc66d98ed650c0495f7b558e75a955231f6"
    );
}

#[test]
fn a_partial_success_carries_output_and_metadata_as_they_were_given() {
    let mut run = run(RunStatus::PartialSucceeded);
    run.output = Some(JsonText::from_trusted(r#"{"b":[1.0,"é\u0000"],"a":12345678901234567890}"#));
    run.metadata = None;
    run.duration_ms = None;
    run.completed_at = Some(Timestamp::parse("2023-11-07T05:31:56.12Z").unwrap());
    assert_eq!(
        text(&run, PayloadFormat::Python),
        r#"{"event": "run.partial_succeeded", "run_id": "3c90c3cc-0d44-4b50-8888-8dd25736052a", "status": "partial_succeeded", "output": {"b": [1.0, "\u00e9\u0000"], "a": 12345678901234567890}, "duration_ms": null, "created_at": "2023-11-07T05:31:56+00:00", "completed_at": "2023-11-07T05:31:56.120000+00:00", "metadata": null}"#
    );
    assert_eq!(
        text(&run, PayloadFormat::Compact),
        r#"{"event":"run.partial_succeeded","run_id":"3c90c3cc-0d44-4b50-8888-8dd25736052a","status":"partial_succeeded","output":{"b":[1.0,"é\u0000"],"a":12345678901234567890},"duration_ms":null,"created_at":"2023-11-07T05:31:56+00:00","completed_at":"2023-11-07T05:31:56.120000+00:00","metadata":null}"#
    );
}

#[test]
fn a_failure_carries_an_error_object_in_place_of_the_output() {
    let mut run = run(RunStatus::Failed);
    run.failure_code = Some("oom".to_owned());
    run.failure_message = Some("out of \"memory\"".to_owned());
    let text = text(&run, PayloadFormat::Python);
    assert!(text.starts_with(r#"{"event": "run.failed", "#), "{text}");
    let output =
        r#""status": "failed", "output": {"code": "oom", "message": "out of \"memory\"", "stage": null}, "#;
    assert!(text.contains(output), "{text}");
}

#[test]
fn a_canceled_run_has_a_null_output_and_its_event_is_spelled_cancelled() {
    let text = text(&run(RunStatus::Canceled), PayloadFormat::Python);
    assert!(text.starts_with(r#"{"event": "run.cancelled", "#), "{text}");
    assert!(text.contains(r#""status": "canceled", "output": null, "#), "{text}");
}

#[test]
fn a_run_that_has_not_ended_has_no_payload() {
    for status in [RunStatus::Queued, RunStatus::Dispatching, RunStatus::Running] {
        assert_eq!(Event::for_status(status), None);
        assert_eq!(CallbackPayload::of(&run(status)), Err(PayloadError::NotTerminal));
    }
}

#[test]
fn a_damaged_stored_document_is_an_error() {
    let mut run = run(RunStatus::Succeeded);
    run.metadata = Some(JsonText::from_trusted("{"));
    assert!(matches!(CallbackPayload::of(&run), Err(PayloadError::Metadata(_))));
    run.output = Some(JsonText::from_trusted(""));
    assert!(matches!(CallbackPayload::of(&run), Err(PayloadError::Output(_))));
}

#[test]
fn the_setting_reads_python_or_compact() {
    assert_eq!("compact".parse(), Ok(PayloadFormat::Compact));
    assert_eq!(serde_json::from_str::<PayloadFormat>("\"python\"").unwrap(), PayloadFormat::default());
}

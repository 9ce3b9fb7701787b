//! Examples for the API description. They are built from the response types, so they can't deviate from them.

use contracts::{
    CallbackPayload, CallbackSecret, Delivery, DeliveryId, DeliveryStatus, FailureReason, JsonText,
    NewSecret, OrgId, PayloadFormat, Run, RunId, RunStatus, SecretId, SigningSecret, Timestamp,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// A time in November 2023, `seconds` after the run was created.
fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_micros((1_699_335_116 + seconds) * 1_000_000)
}

const ORG: OrgId = OrgId(Uuid::from_u128(0x018b_a8a2_1ae0_7000_8000_0000_0000_0001));
const RUN: RunId = RunId(Uuid::from_u128(0x3c90_c3cc_0d44_4b50_8888_8dd2_5736_052a));
const DELIVERY: DeliveryId = DeliveryId(Uuid::from_u128(0x018b_a8a2_1ae0_7000_8000_0000_0000_0002));
const SECRET: SecretId = SecretId(Uuid::from_u128(0x018b_a8a2_1ae0_7000_8000_0000_0000_0003));

fn a_run() -> Run {
    let text = |value: Value| Some(JsonText::from_trusted(value.to_string()));
    Run {
        id: RUN,
        org_id: ORG,
        status_code: RunStatus::Succeeded,
        output: text(json!({"images": ["https://cdn.example.com/1.png"]})),
        duration_ms: Some(123),
        created_at: moment(0),
        started_at: Some(moment(0)),
        completed_at: Some(moment(1)),
        callback_url: Some("https://hooks.example.com/callbacks".into()),
        metadata: text(json!({"order": 17})),
        failure_code: None,
        failure_message: None,
        failure_stage_code: None,
        updated_at: moment(1),
    }
}

pub(super) fn run() -> Value {
    json!(a_run())
}

fn a_delivery() -> Delivery {
    let run = a_run();
    let payload = CallbackPayload::of(&run).map(|payload| payload.to_text(PayloadFormat::Python));
    Delivery {
        id: DELIVERY,
        run_id: run.id,
        callback_url: run.callback_url.unwrap_or_default(),
        payload_bytes: payload.unwrap_or_default(),
        signing_secret_id: Some(SECRET),
        is_automatic: false,
        status_code: DeliveryStatus::Pending,
        failure_reason_code: None,
        failure_detail: None,
        attempt_count: 0,
        max_attempts: 8,
        next_attempt_at: Some(moment(60)),
        created_at: moment(60),
        updated_at: moment(60),
        completed_at: None,
        attempts: Vec::new(),
    }
}

pub(super) fn delivery() -> Value {
    json!(a_delivery())
}

pub(super) fn withdrawn_delivery() -> Value {
    json!(Delivery {
        status_code: DeliveryStatus::Failed,
        failure_reason_code: Some(FailureReason::Withdrawn),
        failure_detail: Some("a client withdrew it".into()),
        next_attempt_at: None,
        updated_at: moment(61),
        completed_at: Some(moment(61)),
        ..a_delivery()
    })
}

fn a_secret() -> NewSecret {
    let bytes: [u8; 32] = std::array::from_fn(|i| i as u8); // not a real key
    let plain_secret = SigningSecret::from_key(&bytes);
    let secret = CallbackSecret {
        id: SECRET,
        org_id: ORG,
        key_prefix: plain_secret.key_prefix().to_owned(),
        is_current: true,
        label: Some("2026".into()),
        disabled_at: None,
        last_used_at: None,
        created_at: moment(0),
        updated_at: moment(0),
    };
    NewSecret { plain_secret, secret }
}

pub(super) fn new_secret() -> Value {
    json!(a_secret())
}

pub(super) fn secret() -> Value {
    json!(a_secret().secret)
}

//! Signing secrets.

use actix_web::http::StatusCode;
use contracts::{FieldError, Json, Object};
use serde_json::{Value, json};
use store::create_secret;

use crate::body::unknown_fields;
use crate::call::{self, Answer, Call};

/// The longest label, in characters.
const MAX_LABEL: usize = 255;

/// `POST /v1/callback-secrets`: makes a secret, and shows it this once.
pub(crate) async fn create(call: Call) -> Answer {
    call.no_query()?;
    let label = label(call.optional_object()?)?;
    let Call { api, org, .. } = call;
    let keyring = api.keyring.clone();
    let secret = api.store.write(move |tx, now| create_secret(tx, now, &keyring, org, label)).await?;
    call::json(StatusCode::CREATED, &secret)
}

/// The `label` of a body that has nothing else.
fn label(mut body: Object) -> Result<Option<String>, Vec<FieldError>> {
    let label = match body.shift_remove("label") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) if text.contains('\0') => {
            Err(("null_character", "NUL characters can't be stored"))
        }
        Some(Json::String(text)) if text.chars().count() > MAX_LABEL => {
            Err(("string_too_long", "expected at most 255 characters"))
        }
        Some(Json::String(text)) => Ok(Some(text)),
        Some(_) => Err(("string_type", "expected a string or null")),
    };
    let mut errors: Vec<FieldError> = unknown_fields(&body).collect();
    match label {
        Ok(label) if errors.is_empty() => Ok(label),
        Ok(_) => Err(errors),
        Err((kind, msg)) => {
            errors.insert(0, FieldError::new(&["body", "label"], kind, msg));
            Err(errors)
        }
    }
}

/// What a new secret may be given.
pub(super) fn creation_schema() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {"label": label_schema()}})
}

fn label_schema() -> Value {
    json!({"type": ["string", "null"], "maxLength": MAX_LABEL, "pattern": "^[^\\u0000]*$"})
}

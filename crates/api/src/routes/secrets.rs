//! Signing secrets.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use contracts::{BodyReader, CallbackSecret, ErrorCode, ErrorType, FieldError, Json, SecretId};
use serde_json::{Value, json};
use store::{
    CreatedSecret, SecretUpdate, UpdatedSecret, create_secret, create_secret_once, disable_secret,
    find_secret, secrets_page, update_secret,
};

use crate::call::{self, Call, CallResult};
use crate::guards::idempotency::key_reused;
use crate::query::paging::{self, page_of};
use crate::query::selection::Selection;

/// Maximum length of a label, in characters.
const MAX_LABEL: usize = 255;

/// `POST /v1/callback-secrets`: creates a secret. Only this response shows its plain text.
pub(crate) async fn create(call: Call) -> CallResult {
    call.no_query()?;
    let key = call.idempotency_key()?;
    let mut body = call.optional_members()?;
    let label = label(&mut body).flatten();
    body.finish()?;
    let Call { api, org, .. } = call;
    let keyring = api.keyring.clone();
    let created = api.store.write(move |tx, now| match key {
        None => create_secret(tx, now, &keyring, org, label).map(CreatedSecret::Created),
        Some(key) => create_secret_once(tx, now, &keyring, org, label, &key),
    });
    match created.await? {
        CreatedSecret::Created(secret) => call::json(StatusCode::CREATED, &secret),
        CreatedSecret::KeyReused => Err(key_reused()),
    }
}

/// `GET /v1/callback-secrets`: the organization's secrets, page by page.
pub(crate) async fn list(call: Call) -> CallResult {
    let mut query = call.query()?;
    let request = page_of(&mut query);
    let selection = Selection::of::<CallbackSecret>(&mut query);
    query.finish()?;
    let org = call.org;
    let request = paging::bounded(&call, request).await?;
    let found = call.api.store.read(move |tx| secrets_page(tx, org, &request)).await?;
    paging::answer(&call, &request, found, selection)
}

/// `GET /v1/callback-secrets/{id}`
pub(crate) async fn show(call: Call) -> CallResult {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    let secret = call.api.store.read(move |tx| find_secret(tx, org, id)).await?;
    call::json(StatusCode::OK, &secret.ok_or(ErrorCode::CallbackSecretNotFound)?)
}

/// `PATCH /v1/callback-secrets/{id}`: labels a secret, or makes it the current one.
pub(crate) async fn update(call: Call) -> CallResult {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let mut body = call.members()?;
    let update = SecretUpdate { label: label(&mut body), promote: promote(&mut body) };
    body.finish()?;
    if update == (SecretUpdate { label: None, promote: false }) {
        return Err(FieldError::new(&["body"], ErrorType::Missing, "expected label or is_current").into());
    }
    let org = call.org;
    let updated = call.api.store.write(move |tx, now| update_secret(tx, now, org, id, &update)).await?;
    match updated {
        UpdatedSecret::Updated(secret) => call::json(StatusCode::OK, &secret),
        UpdatedSecret::NotFound => Err(ErrorCode::CallbackSecretNotFound.into()),
        UpdatedSecret::Disabled => {
            let msg = "a deleted secret can't become current";
            Err(FieldError::new(&["body", "is_current"], ErrorType::SecretDisabled, msg).into())
        }
    }
}

/// `DELETE /v1/callback-secrets/{id}`: disables a secret.
pub(crate) async fn delete(call: Call) -> CallResult {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    if call.api.store.write(move |tx, now| disable_secret(tx, now, org, id)).await? {
        Ok(HttpResponse::NoContent().finish())
    } else {
        Err(ErrorCode::CallbackSecretNotFound.into())
    }
}

/// Takes the label. The inner `None` means null; the outer one means absent or invalid.
fn label(body: &mut BodyReader) -> Option<Option<String>> {
    match body.take("label")? {
        Json::Null => Some(None),
        Json::String(text) => body.checked("label", text, MAX_LABEL).map(Some),
        _ => body.refuse("label", ErrorType::StringType, "expected a string or null"),
    }
}

/// Whether `is_current` is true, the only valid value: a secret is replaced by promoting another one.
fn promote(body: &mut BodyReader) -> bool {
    match body.take("is_current") {
        None => false,
        Some(Json::Bool(true)) => true,
        Some(_) => {
            body.refuse::<()>("is_current", ErrorType::LiteralError, "expected true");
            false
        }
    }
}

/// Schema of the body that creates a secret.
pub(super) fn creation_schema() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {"label": label_schema()}})
}

/// Schema of the body that updates a secret.
pub(super) fn update_schema() -> Value {
    let is_current = json!({"type": "boolean", "const": true});
    json!({
        "type": "object",
        "additionalProperties": false,
        "minProperties": 1,
        "properties": {"label": label_schema(), "is_current": is_current},
    })
}

fn label_schema() -> Value {
    json!({"type": ["string", "null"], "maxLength": MAX_LABEL, "pattern": "^[^\\u0000]*$"})
}

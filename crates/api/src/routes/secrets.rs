//! Signing secrets.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use contracts::{CallbackSecret, ErrorCode, FieldError, Json, Object, SecretId};
use serde_json::{Value, json};
use store::{
    CreatedSecret, SecretUpdate, UpdatedSecret, create_secret, create_secret_once, disable_secret,
    find_secret, secrets_page, update_secret,
};

use crate::body::{self, unknown_fields};
use crate::call::{self, Answer, Call};
use crate::idempotency::key_reused;
use crate::paging::{self, page_of};
use crate::selection::Selection;

/// Maximum length of a label, in characters.
const MAX_LABEL: usize = 255;

/// `POST /v1/callback-secrets`: creates a secret. Only this response shows its plain text.
pub(crate) async fn create(call: Call) -> Answer {
    call.no_query()?;
    let key = call.idempotency_key()?;
    let mut fields = Fields::new(call.optional_object()?);
    let label = fields.label().flatten();
    fields.finish()?;
    let Call { api, org, .. } = call;
    let keyring = api.keyring.clone();
    let created = api.store.write(move |tx, now| match key {
        None => create_secret(tx, now, &keyring, org, label).map(CreatedSecret::Made),
        Some(key) => create_secret_once(tx, now, &keyring, org, label, &key),
    });
    match created.await? {
        CreatedSecret::Made(secret) => call::json(StatusCode::CREATED, &secret),
        CreatedSecret::KeyReused => Err(key_reused()),
    }
}

/// `GET /v1/callback-secrets`: the organization's secrets, page by page.
pub(crate) async fn list(call: Call) -> Answer {
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
pub(crate) async fn show(call: Call) -> Answer {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    let secret = call.api.store.read(move |tx| find_secret(tx, org, id)).await?;
    call::json(StatusCode::OK, &secret.ok_or(ErrorCode::CallbackSecretNotFound)?)
}

/// `PATCH /v1/callback-secrets/{id}`: labels a secret, or makes it the current one.
pub(crate) async fn update(call: Call) -> Answer {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let mut fields = Fields::new(body::object(call.json()?)?);
    let update = SecretUpdate { label: fields.label(), promote: fields.promote() };
    fields.finish()?;
    if update == (SecretUpdate { label: None, promote: false }) {
        return Err(FieldError::new(&["body"], "missing", "expected label or is_current").into());
    }
    let org = call.org;
    let updated = call.api.store.write(move |tx, now| update_secret(tx, now, org, id, &update)).await?;
    match updated {
        UpdatedSecret::Updated(secret) => call::json(StatusCode::OK, &secret),
        UpdatedSecret::NotFound => Err(ErrorCode::CallbackSecretNotFound.into()),
        UpdatedSecret::Disabled => {
            let msg = "a deleted secret can't become current";
            Err(FieldError::new(&["body", "is_current"], "secret_disabled", msg).into())
        }
    }
}

/// `DELETE /v1/callback-secrets/{id}`: disables a secret.
pub(crate) async fn delete(call: Call) -> Answer {
    let id = SecretId(call.path_id("id")?);
    call.no_query()?;
    let org = call.org;
    if call.api.store.write(move |tx, now| disable_secret(tx, now, org, id)).await? {
        Ok(HttpResponse::NoContent().finish())
    } else {
        Err(ErrorCode::CallbackSecretNotFound.into())
    }
}

/// A body's members, and the errors of those already read.
struct Fields {
    body: Object,
    errors: Vec<FieldError>,
}

impl Fields {
    fn new(body: Object) -> Fields {
        Fields { body, errors: Vec::new() }
    }

    fn refuse(&mut self, name: &str, kind: &'static str, msg: &str) {
        self.errors.push(FieldError::new(&["body", name], kind, msg));
    }

    /// Takes the label. The inner `None` means null; the outer one means absent or invalid.
    fn label(&mut self) -> Option<Option<String>> {
        match self.body.shift_remove("label")? {
            Json::Null => return Some(None),
            Json::String(text) if text.contains('\0') => {
                self.refuse("label", "null_character", "NUL characters can't be stored");
            }
            Json::String(text) if text.chars().count() > MAX_LABEL => {
                self.refuse("label", "string_too_long", "expected at most 255 characters");
            }
            Json::String(text) => return Some(Some(text)),
            _ => self.refuse("label", "string_type", "expected a string or null"),
        }
        None
    }

    /// Whether `is_current` is true, the only valid value: a secret is replaced by promoting another one.
    fn promote(&mut self) -> bool {
        let given = self.body.shift_remove("is_current");
        let promote = given == Some(Json::Bool(true));
        if given.is_some() && !promote {
            self.refuse("is_current", "literal_error", "expected true");
        }
        promote
    }

    /// Refuses a body with invalid or unknown members.
    fn finish(mut self) -> Result<(), Vec<FieldError>> {
        self.errors.extend(unknown_fields(&self.body));
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
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

//! A call that may be made, and what its handler reads from it.

use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use contracts::{FieldError, Object, OrgId};
use serde::Serialize;
use store::IdempotencyKey;
use uuid::Uuid;

use crate::acceptor::Acceptor;
use crate::error::ApiError;
use crate::params::{Query, parse_uuid};
use crate::{Api, body, idempotency, params};

/// What a handler answers.
pub(crate) type Answer = Result<HttpResponse, ApiError>;

/// A request whose token, organization and scope have been found good.
pub(crate) struct Call {
    pub(crate) api: Data<Api>,
    pub(crate) acceptor: Data<Acceptor>,
    /// The caller's organization.
    pub(crate) org: OrgId,
    pub(crate) request_id: String,
    pub(crate) request: HttpRequest,
    pub(crate) body: Bytes,
}

impl Call {
    /// The UUID at `{name}` in the path.
    pub(crate) fn path_id(&self, name: &str) -> Result<Uuid, ApiError> {
        let text = self.request.match_info().get(name).unwrap_or_default();
        Ok(parse_uuid(&["path", name], text)?)
    }

    /// The query's parameters, to be taken out one by one.
    pub(crate) fn query(&self) -> Result<Query, ApiError> {
        Query::of(&self.request)
    }

    /// The `Idempotency-Key`, if there is one.
    pub(crate) fn idempotency_key(&self) -> Result<Option<IdempotencyKey>, ApiError> {
        Ok(idempotency::key_of(&self.request, &self.body)?)
    }

    /// Refuses every query parameter.
    pub(crate) fn no_query(&self) -> Result<(), ApiError> {
        params::no_query(&self.request)
    }

    /// The body, which must be declared as JSON.
    pub(crate) fn json(&self) -> Result<&[u8], ApiError> {
        body::require_json(&self.request)?;
        Ok(&self.body)
    }

    /// The members of a body that may be left out altogether.
    pub(crate) fn optional_object(&self) -> Result<Object, ApiError> {
        if self.body.is_empty() { Ok(Object::new()) } else { body::object(self.json()?) }
    }

    /// Refuses a body that says anything: it may be left out, or be an empty object.
    pub(crate) fn no_body(&self) -> Result<(), ApiError> {
        let unknown: Vec<FieldError> = body::unknown_fields(&self.optional_object()?).collect();
        if unknown.is_empty() { Ok(()) } else { Err(unknown.into()) }
    }
}

/// An answer with a body.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body)?;
    Ok(HttpResponse::build(status).content_type(ContentType::json()).body(body))
}

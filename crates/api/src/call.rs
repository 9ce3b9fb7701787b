//! A call that may be made, and what its handler reads from it.

use std::convert::Infallible;
use std::sync::Arc;

use actix_web::body::{BodySize, MessageBody, SizedStream};
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use contracts::{FieldError, Object, OrgId};
use futures_util::stream;
use serde::Serialize;
use store::{IdempotencyKey, StoreError};
use uuid::Uuid;

use crate::acceptor::Acceptor;
use crate::error::ApiError;
use crate::keeping::Keeping;
use crate::params::{Query, parse_uuid};
use crate::room::{LIGHT, Taken};
use crate::{Api, body, idempotency, params};

/// What a handler answers.
pub(crate) type Answer = Result<HttpResponse, ApiError>;

/// A request whose token, organization and scope have been found good.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) api: Data<Api>,
    pub(crate) acceptor: Data<Acceptor>,
    /// The caller's organization.
    pub(crate) org: OrgId,
    pub(crate) request_id: String,
    pub(crate) request: HttpRequest,
    pub(crate) body: Bytes,
    /// Room for large things, once it turned out that it is needed: a handler that fails with
    /// [`StoreError::TooLarge`] is called again when there is room.
    pub(crate) room: Option<Arc<Taken>>,
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

    /// The most bytes that may be read for it.
    pub(crate) fn max_bytes(&self) -> usize {
        if self.room.is_some() { usize::MAX } else { LIGHT }
    }

    /// Does what takes long for something large, and then off the threads that serve all.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if self.room.is_none() {
            return Ok(work());
        }
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Panicked)?)
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
    let mut response = HttpResponse::build(status);
    response.content_type(ContentType::json());
    if body.len() <= PIECE {
        return Ok(response.body(body));
    }
    // actix copies a body that it is given whole; of one in pieces it takes what the client has room for.
    let (size, mut left) = (body.len() as u64, Bytes::from(body));
    let pieces = std::iter::from_fn(move || {
        (!left.is_empty()).then(|| Ok::<_, Infallible>(left.split_to(PIECE.min(left.len()))))
    });
    Ok(response.body(SizedStream::new(size, stream::iter(pieces))))
}

const PIECE: usize = 64 * 1024;

/// The answer, which keeps the room that it has itself until the client has taken it.
pub(crate) fn keep(answer: HttpResponse, room: Arc<Taken>) -> HttpResponse {
    if let BodySize::Sized(bytes) = answer.body().size() {
        room.keep_only(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    answer.map_body(|_, body| Keeping::new(body, room)).map_into_boxed_body()
}

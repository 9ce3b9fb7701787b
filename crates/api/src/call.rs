//! An authorized call, and what its handler reads from it.

use std::convert::Infallible;
use std::sync::Arc;

use actix_web::body::{BodySize, MessageBody, SizedStream};
use actix_web::http::StatusCode;
use actix_web::http::header::ContentType;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use contracts::{BodyReader, OrgId, RequestContext};
use futures_util::stream;
use serde::Serialize;
use store::{IdempotencyKey, StoreError};
use uuid::Uuid;

use crate::acceptor::Acceptor;
use crate::context::Api;
use crate::error::ApiError;
use crate::guards::idempotency;
use crate::guards::memory::Reservation;
use crate::limits::LIGHT;
use crate::query::params;
use crate::query::params::{Query, parse_uuid};
use crate::transport::body;
use crate::transport::owning_body::OwningBody;

/// The result of a handler.
pub(crate) type CallResult = Result<HttpResponse, ApiError>;

/// A request with a valid token, organization and scope.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) api: Data<Api>,
    pub(crate) acceptor: Data<Acceptor>,
    /// The caller's organization.
    pub(crate) org: OrgId,
    /// Kept with what the call creates.
    pub(crate) context: RequestContext,
    pub(crate) request: HttpRequest,
    pub(crate) body: Bytes,
    /// Memory reserved for a large body or response. A handler that fails for lack of it, as with
    /// [`StoreError::TooLarge`], is called again once the memory is reserved.
    pub(crate) room: Option<Arc<Reservation>>,
}

impl Call {
    /// Parses the UUID at `{name}` in the path.
    pub(crate) fn path_id(&self, name: &str) -> Result<Uuid, ApiError> {
        let text = self.request.match_info().get(name).unwrap_or_default();
        Ok(parse_uuid(&["path", name], text)?)
    }

    /// Returns the query parameters, to be taken out one by one.
    pub(crate) fn query(&self) -> Result<Query, ApiError> {
        Query::of(&self.request)
    }

    /// Returns the `Idempotency-Key`, if there is one.
    pub(crate) fn idempotency_key(&self) -> Result<Option<IdempotencyKey>, ApiError> {
        Ok(idempotency::key_of(&self.request, &self.body)?)
    }

    /// Maximum bytes that this call may read from the database.
    pub(crate) fn max_bytes(&self) -> usize {
        if self.room.is_some() { usize::MAX } else { LIGHT }
    }

    /// Runs `work`. For a large call, runs it on a blocking thread to keep the worker threads free.
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

    /// Returns the body, which must be declared as JSON.
    pub(crate) fn json(&self) -> Result<&[u8], ApiError> {
        body::require_json(&self.request)?;
        Ok(&self.body)
    }

    /// Reads the members of the body.
    pub(crate) fn members(&self) -> Result<BodyReader, ApiError> {
        body::members(self.json()?)
    }

    /// Reads the members of an optional body.
    pub(crate) fn optional_members(&self) -> Result<BodyReader, ApiError> {
        if self.body.is_empty() { Ok(BodyReader::default()) } else { self.members() }
    }

    /// Refuses a body with members. It may be absent or an empty object.
    pub(crate) fn no_body(&self) -> Result<(), ApiError> {
        Ok(self.optional_members()?.finish()?)
    }
}

/// Returns a response with a JSON body.
pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> CallResult {
    let body = serde_json::to_vec(body)?;
    let mut response = HttpResponse::build(status);
    response.content_type(ContentType::json());
    if body.len() <= PIECE {
        return Ok(response.body(body));
    }
    // actix copies a body that is a single buffer. It takes a stream only as fast as the client reads.
    let (size, mut left) = (body.len() as u64, Bytes::from(body));
    let pieces = std::iter::from_fn(move || {
        (!left.is_empty()).then(|| Ok::<_, Infallible>(left.split_to(PIECE.min(left.len()))))
    });
    Ok(response.body(SizedStream::new(size, stream::iter(pieces))))
}

const PIECE: usize = 64 * 1024;

/// Reduces the reservation to the size of the response, and holds it until the client has taken the response.
pub(crate) fn keep(answer: HttpResponse, room: Arc<Reservation>) -> HttpResponse {
    if let BodySize::Sized(bytes) = answer.body().size() {
        room.keep_only(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
    answer.map_body(|_, body| OwningBody::new(body, room)).map_into_boxed_body()
}

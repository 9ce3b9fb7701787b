//! Responses to requests whose body was not read to its end because it was too long, too slow or not needed.
//!
//! actix then closes the connection, as it should, unless a chunked body has been dropped: it reads such a
//! body to its end, which may never come. So a chunked body is kept until its request has been answered.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage};
use futures_util::Stream;

use crate::transport::owning_body::OwningBody;

pub(crate) async fn layer(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + Unpin>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let kept =
        request.chunked().unwrap_or(false).then(|| Shared(Rc::new(RefCell::new(request.take_payload()))));
    if let Some(kept) = &kept {
        request.set_payload(Payload::Stream { payload: Box::pin(kept.clone()) });
    }
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| OwningBody::new(body, kept)))
}

#[derive(Clone)]
struct Shared(Rc<RefCell<Payload>>);

impl Stream for Shared {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(cx)
    }
}

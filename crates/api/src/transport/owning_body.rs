//! Response bodies that own a value until they end.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;

/// A body that owns a value. Both are dropped when the last chunk has been taken or the connection is gone.
pub(crate) struct OwningBody<B, K> {
    body: B,
    _kept: K,
}

impl<B, K> OwningBody<B, K> {
    pub(crate) fn new(body: B, kept: K) -> OwningBody<B, K> {
        OwningBody { body, _kept: kept }
    }
}

impl<B: MessageBody + Unpin, K: Unpin> MessageBody for OwningBody<B, K> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

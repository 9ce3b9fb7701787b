//! Answers that keep something until they have been made to their end.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;

/// A body that drops what it keeps together with itself: when its last piece has been taken, or its connection is gone.
pub(crate) struct Keeping<B, K> {
    body: B,
    _kept: K,
}

impl<B, K> Keeping<B, K> {
    pub(crate) fn new(body: B, kept: K) -> Keeping<B, K> {
        Keeping { body, _kept: kept }
    }
}

impl<B: MessageBody + Unpin, K: Unpin> MessageBody for Keeping<B, K> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

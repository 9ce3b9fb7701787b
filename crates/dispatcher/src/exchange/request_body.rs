//! The request body: counts the payload bytes sent, and refuses to be sent too late.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use engine::SendWindow;
use http_body::{Body, Frame, SizeHint};
use store::Clock;
use thiserror::Error;

use crate::exchange::trace::Trace;

/// Bytes handed to the connection at once. hyper takes up to sixteen chunks ahead of what it has written; the
/// chunks are small enough to show how far an upload got.
const CHUNK: usize = 4 * 1024;

/// A payload that refuses to be written too late. hyper polls it in the same step that writes the request's
/// head. So a process that was stopped while connecting, or at any moment before, sends nothing when it
/// continues.
pub(crate) struct TimelyBody {
    left: Bytes,
    has_begun: bool,
    clock: Clock,
    window: SendWindow,
    trace: Arc<Trace>,
}

/// The error with which [`TimelyBody`] refuses.
#[derive(Debug, Error)]
#[error("too late to be sent")]
pub(crate) struct TooLate;

impl TimelyBody {
    pub(crate) fn new(payload: Bytes, clock: Clock, window: SendWindow, trace: Arc<Trace>) -> TimelyBody {
        TimelyBody { left: payload, has_begun: false, clock, window, trace }
    }
}

impl Body for TimelyBody {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        if !self.has_begun && !self.window.may_write(self.clock.monotonic()) {
            return Poll::Ready(Some(Err(TooLate)));
        }
        self.has_begun = true;
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(CHUNK);
        let chunk = self.left.split_to(length);
        self.trace.sent(length);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

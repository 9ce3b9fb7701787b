//! What actix leaves open on a connection: the time of any head but the first, clients that don't read their answers,
//! and the form of the answers that actix gives by itself.
//!
//! [`Guarded`] lies between a connection and actix's dispatcher and sees nothing but bytes; [`layer`], around the
//! whole application, tells it when a request begins and ends. The first head's time is actix's own.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Limits;
use crate::keeping::Keeping;
use crate::shares::Share;
use crate::unparsed::Refusal;

/// Whose turn it is.
#[derive(Clone, Copy)]
enum Turn {
    /// The client's: it owes a head.
    Head(Head),
    /// Ours, since a head was complete, until the answer has been made to its end.
    Request,
    /// The client's again: the rest of the answer is on its way.
    Answer,
    /// The answer ends the connection. What still comes is read for a moment, by actix, and of no interest.
    Last,
}

/// What has come of a head.
#[derive(Clone, Copy, Default)]
struct Head {
    /// When the first byte came.
    since: Option<Instant>,
    bytes: usize,
    /// actix has been given the opportunity to find a request in that many bytes.
    judged: bool,
}

/// How much of an answer the kernel holds that it has not sent, in bytes.
const UNSENT: u32 = 64 * 1024;
/// The longest head, give or take what comes in one piece. actix would take 128 KiB, of each connection.
const LONGEST_HEAD: usize = 32 * 1024;

/// What a connection and its requests know of each other.
pub(crate) struct Progress(Cell<Turn>);

/// Tells the connection of each request, and when its answer is made to its end.
pub(crate) async fn layer(
    request: ServiceRequest,
    next: Next<impl MessageBody + Unpin>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let progress = request.conn_data::<Rc<Progress>>().cloned();
    if let Some(progress) = &progress {
        progress.0.set(Turn::Request);
    }
    let made = Made(progress);
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| Keeping::new(body, made)))
}

/// Dropped when an answer has been made, or never will be.
struct Made(Option<Rc<Progress>>);

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(progress) = &self.0
            && let Turn::Request = progress.0.get()
        {
            progress.0.set(Turn::Answer);
        }
    }
}

/// A connection whose client may not take its time without end.
pub(crate) struct Guarded {
    io: TcpStream,
    limits: Limits,
    progress: Rc<Progress>,
    /// Kept from head to head, as making one costs more than setting it.
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client leaves an answer lying.
    stalled: Option<Stalled>,
    /// Takes the place of what actix would answer.
    refusal: Option<Refusal>,
    /// Its client has too many.
    is_too_many: bool,
    _share: Option<Share>,
}

struct Stalled {
    timer: Pin<Box<Sleep>>,
    taken: usize,
}

impl Guarded {
    pub(crate) fn new(io: TcpStream, limits: Limits) -> Guarded {
        let progress = Rc::new(Progress(Cell::new(Turn::Head(Head::default()))));
        // Else the kernel takes megabytes, of each connection, and says that it takes more only when a third of them is
        // gone: a slow client would look like one that has stopped.
        if let Err(error) = SockRef::from(&io).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "the kernel's buffer is not bounded");
        }
        let (head_timer, stalled, refusal) = (None, None, None);
        Guarded { io, limits, progress, head_timer, stalled, refusal, is_too_many: false, _share: None }
    }

    /// The same as one of those that its client may have, if it may have one more.
    pub(crate) fn counted(self, share: Option<Share>) -> Guarded {
        Guarded { is_too_many: share.is_none(), _share: share, ..self }
    }

    pub(crate) fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
    }

    /// Whether the head that is under way has taken too long.
    fn head_is_late(&mut self, cx: &mut Context<'_>, since: Instant) -> bool {
        let deadline = since + self.limits.head_time;
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    /// Fails when the client has left too much of an answer lying for too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let deadline = || Instant::now() + self.limits.answer_time;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Stalled { timer: Box::pin(sleep_until(deadline())), taken: 0 });
        if stalled.taken >= Limits::ANSWER_STEP {
            stalled.taken = 0;
            stalled.timer.as_mut().reset(deadline());
        }
        if stalled.timer.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        // What lies in the kernel's buffers is thrown away with the connection.
        self.io.set_zero_linger()?;
        Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer"))
    }
}

impl Guarded {
    /// Answers a head that can't become a request, and ends the stream.
    fn refuse(&mut self, cx: &mut Context<'_>, status: u16) -> Poll<io::Result<()>> {
        if self.refusal.is_none() {
            self.refusal = Some(Refusal::new(status));
        }
        // Whoever does not take these few bytes at once goes without.
        let _ = self.poll_refuse(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(refusal) = &mut self.refusal {
            while !refusal.rest().is_empty() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, refusal.rest()))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                refusal.written(written);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Turn::Head(mut head) = this.progress.0.get() else {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        };
        if this.is_too_many {
            // The runtime does not know yet that a new connection can be written to.
            this.refusal.get_or_insert_with(|| Refusal::new(429));
            return this.poll_refuse(cx);
        }
        // A steady stream of bytes without a request must not put the end off either.
        if head.since.is_some_and(|since| this.head_is_late(cx, since)) {
            return this.refuse(cx, 408);
        }
        if head.bytes >= LONGEST_HEAD {
            // actix reads all there is before it looks for a request, which may be followed by a long body.
            if head.judged {
                return this.refuse(cx, 431);
            }
            this.progress.0.set(Turn::Head(Head { judged: true, ..head }));
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let len = buf.filled().len() - before;
        if len > 0 {
            head.bytes += len;
            if head.since.is_none() {
                head.since = Some(Instant::now());
            }
            this.progress.0.set(Turn::Head(head));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match this.progress.0.get() {
            // There is no request to answer: this comes from actix alone. (Behind the answer to an earlier request of
            // the same connection it could not be told apart, and stays as it is.)
            Turn::Head(_) if this.refusal.is_none() => this.refusal = Refusal::instead_of(buf),
            Turn::Request | Turn::Answer if ends_connection(buf) => this.progress.0.set(Turn::Last),
            _ => {}
        }
        let written = match this.refusal {
            Some(_) => this.poll_refuse(cx).map_ok(|()| buf.len()),
            None => Pin::new(&mut this.io).poll_write(cx, buf),
        };
        match written {
            Poll::Pending => this.poll_stalled(cx)?,
            Poll::Ready(Ok(written)) => {
                if let Some(stalled) = &mut this.stalled {
                    stalled.taken += written;
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        written
    }

    /// actix flushes whenever it has nothing left to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        this.stalled = None;
        if let Turn::Answer = this.progress.0.get() {
            this.progress.0.set(Turn::Head(Head::default()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Whether that is the beginning of an answer after which nothing follows.
fn ends_connection(answer: &[u8]) -> bool {
    const CLOSE: &[u8] = b"\r\nconnection: close\r\n";
    if !answer.starts_with(b"HTTP/1.") {
        return false; // the rest of one
    }
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(answer, |end| &answer[..end + 2]);
    head.windows(CLOSE.len()).any(|line| line.eq_ignore_ascii_case(CLOSE))
}

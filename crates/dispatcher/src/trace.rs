//! What is measured of one attempt while it is made: when its phases began and ended, and who it talked to.
//!
//! The client calls the resolver, the TLS layer and the connector within the task of the attempt, so a task-local
//! connects them with it. Connecting goes on in another task when the request is sent on a connection that has become idle
//! meanwhile: it finds no trace there.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::{OrgId, Timing};
use tokio::time::Instant;

tokio::task_local! {
    static CURRENT: Arc<Trace>;
}

/// The measurements of one attempt.
pub(crate) struct Trace {
    org_id: OrgId,
    /// Bytes of payload to send.
    size: usize,
    began_at: Instant,
    marks: Mutex<Marks>,
}

/// What has happened so far.
#[derive(Clone, Default)]
struct Marks {
    resolve: Phase,
    /// Looking up, connecting and the TLS handshake.
    connector: Phase,
    tls_began_at: Option<Instant>,
    send: Phase,
    sent: usize,
    head_at: Option<Instant>,
    body_ended_at: Option<Instant>,
    remote_address: Option<SocketAddr>,
    refused_address: Option<IpAddr>,
    certificate_fault: Option<String>,
    has_no_times: bool,
}

#[derive(Clone, Copy, Default)]
struct Phase {
    began_at: Option<Instant>,
    ended_at: Option<Instant>,
}

impl Phase {
    fn begin(&mut self) {
        self.began_at.get_or_insert_with(Instant::now);
    }

    fn end(&mut self) {
        self.ended_at = Some(Instant::now());
    }
}

impl Trace {
    /// Begins to measure an attempt of that organization, with a payload of `size` bytes.
    pub(crate) fn begin(org_id: OrgId, size: usize) -> Arc<Trace> {
        Arc::new(Trace { org_id, size, began_at: Instant::now(), marks: Mutex::default() })
    }

    /// The trace of the attempt that the running task makes.
    pub(crate) fn current() -> Option<Arc<Trace>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs a future as part of this attempt.
    pub(crate) async fn measure<T>(self: &Arc<Trace>, exchange: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), exchange).await
    }

    pub(crate) fn org_id(&self) -> OrgId {
        self.org_id
    }

    pub(crate) fn resolve_began(&self) {
        self.marks().resolve.begin();
    }

    pub(crate) fn resolve_ended(&self) {
        self.marks().resolve.end();
    }

    /// Forgets how long everything took: it would tell names that don't exist from internal ones.
    pub(crate) fn forget_times(&self) {
        self.marks().has_no_times = true;
    }

    /// Notes an address of the receiver's name that may not be called.
    pub(crate) fn refused(&self, address: IpAddr) {
        self.marks().refused_address = Some(address);
    }

    pub(crate) fn connector_began(&self) {
        self.marks().connector.begin();
    }

    /// A connection is there, and ready to be written to.
    pub(crate) fn connected(&self, to: Option<SocketAddr>) {
        let mut marks = self.marks();
        marks.connector.end();
        marks.remote_address = to;
    }

    pub(crate) fn tls_began(&self) {
        self.marks().tls_began_at.get_or_insert_with(Instant::now);
    }

    /// Notes what is wrong with the receiver's certificate, in a sentence.
    pub(crate) fn certificate_refused(&self, fault: String) {
        self.marks().certificate_fault = Some(fault);
    }

    pub(crate) fn certificate_fault(&self) -> Option<String> {
        self.marks().certificate_fault.clone()
    }

    /// Whether a TLS handshake has begun and not ended.
    pub(crate) fn is_in_handshake(&self) -> bool {
        let marks = self.marks();
        marks.tls_began_at.is_some() && marks.connector.ended_at.is_none()
    }

    /// Counts bytes of the payload handed to the connection.
    pub(crate) fn sent(&self, bytes: usize) {
        let mut marks = self.marks();
        marks.send.begin();
        marks.sent += bytes;
        if marks.sent >= self.size {
            marks.send.end();
        }
    }

    /// Returns how many bytes of the payload were sent, and its size.
    pub(crate) fn progress(&self) -> (usize, usize) {
        (self.marks().sent, self.size)
    }

    /// Whether the request was written to a connection that an earlier one had opened.
    pub(crate) fn is_on_reused_connection(&self) -> bool {
        let marks = self.marks();
        marks.send.began_at.is_some() && marks.connector.ended_at.is_none()
    }

    /// The head of the response is complete. `from` is who sent it.
    pub(crate) fn answered(&self, from: Option<SocketAddr>) {
        let mut marks = self.marks();
        marks.head_at = Some(Instant::now());
        marks.remote_address = from.or(marks.remote_address);
    }

    pub(crate) fn body_ended(&self) {
        self.marks().body_ended_at = Some(Instant::now());
    }

    pub(crate) fn refused_address(&self) -> Option<IpAddr> {
        self.marks().refused_address
    }

    /// From the beginning to the complete head of the response, or until now.
    pub(crate) fn response_time(&self) -> Option<Duration> {
        let marks = self.marks();
        (!marks.has_no_times).then(|| marks.head_at.unwrap_or_else(Instant::now) - self.began_at)
    }

    /// Returns the phases that have ended and the receiver's address; the rest is the response's.
    pub(crate) fn timing(&self) -> Timing {
        let marks = self.marks().clone();
        if marks.has_no_times {
            return Timing::default();
        }
        let Marks { resolve, connector, tls_began_at, send, head_at, .. } = marks;
        let tcp_began_at = resolve.ended_at.or(connector.began_at);
        let tcp_ended_at = tls_began_at.or(connector.ended_at);
        Timing {
            resolve: millis(resolve.began_at, resolve.ended_at),
            connect: millis(tcp_began_at, tcp_ended_at),
            tls: millis(tls_began_at, connector.ended_at),
            send: millis(send.began_at, send.ended_at),
            wait: millis(send.ended_at.or(send.began_at), head_at),
            body: millis(head_at, marks.body_ended_at),
            remote_address: marks.remote_address.map(|address| address.to_string()),
            content_type: None,
            headers: None,
        }
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(from: Option<Instant>, to: Option<Instant>) -> Option<i32> {
    let took = to?.checked_duration_since(from?)?;
    Some(i32::try_from(took.as_millis()).unwrap_or(i32::MAX))
}

//! Measurements of one attempt in progress: start and end of its phases, and the addresses involved.
//!
//! The client calls the resolver, the TLS layer and the connector within the attempt's task, so they find the
//! trace in a task-local. If the request is sent on a connection that has become idle meanwhile, connecting
//! continues in another task, where there is no trace.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use contracts::{OrgId, Timing};
use parking_lot::Mutex;
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

/// The events so far.
#[derive(Clone, Default)]
struct Marks {
    resolve: Phase,
    /// Name lookup, TCP connect and TLS handshake.
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
    /// Starts measuring an attempt of `org_id` with a payload of `size` bytes.
    pub(crate) fn begin(org_id: OrgId, size: usize) -> Arc<Trace> {
        Arc::new(Trace { org_id, size, began_at: Instant::now(), marks: Mutex::default() })
    }

    /// Returns the trace of the attempt that the current task makes.
    pub(crate) fn current() -> Option<Arc<Trace>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Runs `exchange` as part of this attempt.
    pub(crate) async fn measure<T>(self: &Arc<Trace>, exchange: impl Future<Output = T>) -> T {
        CURRENT.scope(self.clone(), exchange).await
    }

    pub(crate) fn org_id(&self) -> OrgId {
        self.org_id
    }

    pub(crate) fn resolve_began(&self) {
        self.marks.lock().resolve.begin();
    }

    pub(crate) fn resolve_ended(&self) {
        self.marks.lock().resolve.end();
    }

    /// Discards all durations: they would distinguish names that don't exist from internal ones.
    pub(crate) fn forget_times(&self) {
        self.marks.lock().has_no_times = true;
    }

    /// Records a refused address of the receiver's name.
    pub(crate) fn refused(&self, address: IpAddr) {
        self.marks.lock().refused_address = Some(address);
    }

    pub(crate) fn connector_began(&self) {
        self.marks.lock().connector.begin();
    }

    /// Records that a connection is established and ready to be written to.
    pub(crate) fn connected(&self, to: Option<SocketAddr>) {
        let mut marks = self.marks.lock();
        marks.connector.end();
        marks.remote_address = to;
    }

    pub(crate) fn tls_began(&self) {
        self.marks.lock().tls_began_at.get_or_insert_with(Instant::now);
    }

    /// Records what is wrong with the receiver's certificate, as a sentence.
    pub(crate) fn certificate_refused(&self, fault: String) {
        self.marks.lock().certificate_fault = Some(fault);
    }

    pub(crate) fn certificate_fault(&self) -> Option<String> {
        self.marks.lock().certificate_fault.clone()
    }

    /// Whether a TLS handshake has begun and not ended.
    pub(crate) fn is_in_handshake(&self) -> bool {
        let marks = self.marks.lock();
        marks.tls_began_at.is_some() && marks.connector.ended_at.is_none()
    }

    /// Counts payload bytes handed to the connection.
    pub(crate) fn sent(&self, bytes: usize) {
        let mut marks = self.marks.lock();
        marks.send.begin();
        marks.sent += bytes;
        if marks.sent >= self.size {
            marks.send.end();
        }
    }

    /// Returns the number of payload bytes sent, and the payload's size.
    pub(crate) fn progress(&self) -> (usize, usize) {
        (self.marks.lock().sent, self.size)
    }

    /// Whether the request was written to a connection that an earlier request had opened.
    pub(crate) fn is_on_reused_connection(&self) -> bool {
        let marks = self.marks.lock();
        marks.send.began_at.is_some() && marks.connector.ended_at.is_none()
    }

    /// Records that the response's head is complete. `from` is the receiver's address.
    pub(crate) fn answered(&self, from: Option<SocketAddr>) {
        let mut marks = self.marks.lock();
        marks.head_at = Some(Instant::now());
        marks.remote_address = from.or(marks.remote_address);
    }

    pub(crate) fn body_ended(&self) {
        self.marks.lock().body_ended_at = Some(Instant::now());
    }

    pub(crate) fn refused_address(&self) -> Option<IpAddr> {
        self.marks.lock().refused_address
    }

    /// Returns the time from the start to the complete head of the response, or until now without one. `None`
    /// if durations are discarded.
    pub(crate) fn response_time(&self) -> Option<Duration> {
        let marks = self.marks.lock();
        (!marks.has_no_times).then(|| marks.head_at.unwrap_or_else(Instant::now) - self.began_at)
    }

    /// Returns the durations of the phases that have ended, and the receiver's address. The fields from the
    /// response's headers are left empty.
    pub(crate) fn timing(&self) -> Timing {
        let marks = self.marks.lock().clone();
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
}

fn millis(from: Option<Instant>, to: Option<Instant>) -> Option<i32> {
    let took = to?.checked_duration_since(from?)?;
    Some(i32::try_from(took.as_millis()).unwrap_or(i32::MAX))
}

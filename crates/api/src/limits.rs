//! Limits that protect shared resources from a single caller.

use std::time::Duration;

use crate::guards::rate_limit::Rate;

/// Rates, sizes and timeouts. The default timeouts are for production; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests per organization; `None` is unlimited.
    pub requests: Option<Rate>,
    /// Requests with an unknown token per client; `None` is unlimited.
    pub auth_failures: Option<Rate>,
    /// Connections per worker. An idle one holds two buffers of 8 KiB, so a worker with the default number
    /// holds about 128 MiB of them.
    pub connections: usize,
    /// Connections per client or, behind a trusted proxy, a client's requests in flight. `None` is unlimited.
    pub connections_of_client: Option<usize>,
    /// Timeout of a connection between requests. Longer than the 60 s after which common load balancers drop
    /// one, so that the side that reuses connections is the one that closes them.
    pub idle_time: Duration,
    /// Timeout of a request's head. Bounds what a client that sends slowly ties up.
    pub head_time: Duration,
    /// Timeout of a request's body. Enough for the largest body over a poor connection, and cuts off clients
    /// that drip.
    pub body_time: Duration,
    /// Timeout for a client to read each [`Limits::ANSWER_STEP`] bytes of its response that no longer fit
    /// into the kernel's buffers.
    pub answer_time: Duration,
    /// Total time that a request may wait for the database.
    pub database_time: Duration,
    /// Maximum bytes of a page's rows as stored. A single larger row is a page of its own.
    pub page_bytes: usize,
    /// Maximum bytes of all large bodies being read.
    pub arriving: usize,
    /// Approximate maximum memory, in bytes, for processing large bodies and for large responses.
    pub working: usize,
}

impl Limits {
    /// Bytes that a client must read within `answer_time`. With the default, 35 kbit/s is fast enough.
    pub const ANSWER_STEP: usize = 64 * 1024;
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: None,
            auth_failures: None,
            connections: 8_192,
            connections_of_client: Some(1_024),
            idle_time: Duration::from_secs(75),
            head_time: Duration::from_secs(5),
            body_time: Duration::from_secs(30),
            answer_time: Duration::from_secs(15),
            // Responses are promised within five seconds; the difference is a margin for a busy machine.
            database_time: Duration::from_secs(4),
            page_bytes: 8 << 20,
            arriving: 32 << 20,
            working: 96 << 20,
        }
    }
}

/// Maximum bytes of a body or a response that does not count as large.
pub(crate) const LIGHT: usize = 256 * 1024;
/// Maximum bytes of a run whose redelivery is accepted in a batch with others.
pub(crate) const LIGHT_RUN: usize = 64 * 1024;
/// Total bytes of memory per byte of JSON: received, parsed, serialized again, and as a response.
pub(crate) const COPIES: usize = 12;

//! Timing of an attempt's HTTP exchange (contract section 3, `attempts.timing`).

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// The phases of an attempt's HTTP exchange in milliseconds, and facts about the response. A phase is null if
/// it did not happen, such as on a connection that was already open, or did not end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Timing {
    /// Looking up the host name.
    #[schema(required)]
    pub resolve: Option<i32>,
    /// Setting up the TCP connection.
    #[schema(required)]
    pub connect: Option<i32>,
    /// The TLS handshake.
    #[schema(required)]
    pub tls: Option<i32>,
    /// Handing the request to the connection, which buffers part of it.
    #[schema(required)]
    pub send: Option<i32>,
    /// From the end of `send` to the end of the response head.
    #[schema(required)]
    pub wait: Option<i32>,
    /// Reading the response body, up to where reading stopped.
    #[schema(required)]
    pub body: Option<i32>,
    /// The receiver's address and port, if known.
    #[schema(required)]
    pub remote_address: Option<String>,
    /// The response's `Content-Type`.
    #[schema(required)]
    pub content_type: Option<String>,
    /// Selected response headers, with lowercase names; null if there was no response.
    #[schema(required)]
    pub headers: Option<BTreeMap<String, String>>,
}

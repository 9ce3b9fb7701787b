//! What an attempt's HTTP exchange was like (contract section 3, `attempts.timing`).

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

/// The phases of an attempt's HTTP exchange in milliseconds, and who answered. A phase is null when it did not happen, as
/// on a connection that was open already, or did not end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Timing {
    /// Looking up the host's name.
    #[schema(required)]
    pub resolve: Option<i32>,
    /// Setting up the TCP connection.
    #[schema(required)]
    pub connect: Option<i32>,
    /// The TLS handshake.
    #[schema(required)]
    pub tls: Option<i32>,
    /// Handing the request to the connection, whose buffers take some of it ahead.
    #[schema(required)]
    pub send: Option<i32>,
    /// From then to the end of the response head.
    #[schema(required)]
    pub wait: Option<i32>,
    /// Reading the response body, as far as it was read.
    #[schema(required)]
    pub body: Option<i32>,
    /// The receiver's address and port, as far as it is known.
    #[schema(required)]
    pub remote_address: Option<String>,
    /// The response's `Content-Type`.
    #[schema(required)]
    pub content_type: Option<String>,
    /// Some of the response's headers, names in lower case; null when there was no response.
    #[schema(required)]
    pub headers: Option<BTreeMap<String, String>>,
}

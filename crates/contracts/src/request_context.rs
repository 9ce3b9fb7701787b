//! What is kept of the request that created a delivery.

use crate::Traceparent;

/// Identifies the API request that created a delivery, in logs and in traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    /// Its `X-Request-Id`.
    pub request_id: String,
    /// Its position in a trace, if it belongs to one.
    pub traceparent: Option<Traceparent>,
}

impl From<&str> for RequestContext {
    /// Returns the context of the request with this ID, outside of any trace.
    fn from(request_id: &str) -> RequestContext {
        RequestContext { request_id: request_id.to_owned(), traceparent: None }
    }
}

//! The HTTP exchange of an attempt: the request, the connection, the response, and what is recorded of them.

pub(crate) mod client;
pub(crate) mod failure;
pub(crate) mod headers;
pub(crate) mod request_body;
pub(crate) mod response;
pub(crate) mod response_body;
pub(crate) mod sender;
pub(crate) mod span;
pub(crate) mod tls;
mod tls_sessions;
pub(crate) mod trace;

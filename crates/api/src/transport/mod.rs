//! HTTP connections and messages, below the calls: what is bounded, logged and answered before a call exists.

pub(crate) mod access_log;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod client_slots;
pub(crate) mod connection;
pub(crate) mod early_error;
pub(crate) mod owning_body;
pub(crate) mod request_id;
pub(crate) mod server;
pub(crate) mod trace;
pub(crate) mod unread_body;

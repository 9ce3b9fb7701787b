//! TLS sessions to resume, which also tell when a handshake begins.

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;

use crate::exchange::trace::Trace;

/// Sessions to resume. rustls queries it when a handshake begins, which is the only signal for that.
#[derive(Debug)]
pub(super) struct ObservedSessions(ClientSessionMemoryCache);

/// Number of hosts whose sessions are cached.
const HOSTS: usize = 1024;
/// Tickets that rustls keeps per host.
const TICKETS: usize = 8;

impl Default for ObservedSessions {
    fn default() -> ObservedSessions {
        ObservedSessions(ClientSessionMemoryCache::new(HOSTS * TICKETS))
    }
}

impl ClientSessionStore for ObservedSessions {
    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        if let Some(trace) = Trace::current() {
            trace.tls_began();
        }
        self.0.kx_hint(server_name)
    }

    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(server_name, group);
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(server_name)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        self.0.remove_tls12_session(server_name);
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(server_name)
    }
}

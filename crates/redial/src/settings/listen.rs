//! Where a listener that only its own network should reach listens.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use serde::Serialize;

/// An address or a name, and a port.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListenAddress(String);

impl ListenAddress {
    /// Returns the first of the name's addresses that this host has. On a host in several networks, a name that only one
    /// of them knows keeps the others out.
    ///
    /// Blocks while the name is looked up.
    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        let is_own = |address: &SocketAddr| UdpSocket::bind((address.ip(), 0)).is_ok();
        let own = self.0.to_socket_addrs()?.find(is_own);
        own.ok_or_else(|| {
            io::Error::new(io::ErrorKind::AddrNotAvailable, "this host has none of its addresses")
        })
    }

    /// Listens on that address.
    pub(crate) fn bind(&self) -> io::Result<TcpListener> {
        TcpListener::bind(self.local()?)
    }
}

impl FromStr for ListenAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ListenAddress, Self::Err> {
        let is_valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
        });
        is_valid
            .then(|| ListenAddress(text.to_owned()))
            .ok_or("expected an address or a name, and a port, such as 127.0.0.1:9464")
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_resolved_and_no_other_address_is_listened_on() {
        let listener = "localhost:0".parse::<ListenAddress>().unwrap().bind().unwrap();
        assert!(listener.local_addr().unwrap().ip().is_loopback());
    }

    #[test]
    fn addresses_of_other_hosts_are_refused() {
        // TEST-NET-1: no host has it.
        let error = "192.0.2.1:0".parse::<ListenAddress>().unwrap().bind().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}

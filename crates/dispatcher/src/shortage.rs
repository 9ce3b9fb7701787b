//! What the system has run out of, by the errors it reports.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use rustix::io::Errno;

use engine::LocalFailure;

/// Returns the shortage that `error` reports, if it does. Local ports run out with the error of a missing route, see
/// [`has_route`].
pub(crate) fn shortage(error: &io::Error) -> Option<LocalFailure> {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Some(LocalFailure::NoSocket),
        Some(Errno::ADDRNOTAVAIL) => Some(LocalFailure::NoLocalPort),
        Some(_) => None,
        // One error wraps another where a TLS session or a resolver is between them and us.
        None => shortage(error.get_ref()?.downcast_ref()?),
    }
}

/// Whether this host has an address of its own to call `address` from. It has none for IPv6 in many containers.
pub(crate) fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a UDP socket sends nothing: it only looks up the route.
    let tried = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 9)));
    let Err(error) = tried else { return true };
    !matches!(
        Errno::from_io_error(&error),
        Some(Errno::ADDRNOTAVAIL | Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::AFNOSUPPORT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_is_out_of_is_found_however_deep_it_is_wrapped() {
        let os = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(shortage(&os(errno)), Some(LocalFailure::NoSocket));
        }
        let wrapped = io::Error::other(io::Error::other(os(Errno::ADDRNOTAVAIL)));
        assert_eq!(shortage(&wrapped), Some(LocalFailure::NoLocalPort));
        assert_eq!(shortage(&os(Errno::CONNREFUSED)), None);
        assert_eq!(shortage(&io::Error::other("anything else")), None);
    }

    #[test]
    fn loopback_is_reached_and_an_address_of_no_network_is_not() {
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
        // Link-local, without the interface it belongs to.
        assert!(!has_route("fe80::1".parse().unwrap()));
    }
}

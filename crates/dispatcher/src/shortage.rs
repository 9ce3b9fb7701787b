//! Detection of exhausted resources of this host, by error numbers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use rustix::io::Errno;

use engine::LocalFailure;

/// Returns the shortage that `error` reports. EADDRNOTAVAIL is ambiguous: it also means that this host has no
/// address of the destination's family, see [`has_route`].
pub(crate) fn shortage(error: &io::Error) -> Option<LocalFailure> {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Some(LocalFailure::NoSocket),
        Some(Errno::ADDRNOTAVAIL) => Some(LocalFailure::NoLocalPort),
        Some(_) => None,
        // An I/O error may wrap another one, as with TLS.
        None => shortage(error.get_ref()?.downcast_ref()?),
    }
}

/// Whether this host can send to `address` at all. Many containers can't send to IPv6 addresses.
pub(crate) fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a UDP socket looks up the route and sends nothing.
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
    fn a_shortage_is_recognised_in_wrapped_errors() {
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
    fn loopback_has_a_route() {
        assert!(has_route(Ipv4Addr::LOCALHOST.into()));
    }
}

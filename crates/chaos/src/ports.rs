//! Free TCP ports.

use std::net::{Ipv4Addr, TcpListener};

/// Returns a free port. It is not reserved: another process may be given the same one.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

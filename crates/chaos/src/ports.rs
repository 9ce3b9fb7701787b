//! Ports nobody uses.

use std::net::{Ipv4Addr, TcpListener};

/// A port that is free, and stays so unless somebody else is given the same one.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

//! Gathers facts about this host that no crate of their own is for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access, statfs};
use tokio::net::TcpSocket;

use super::host::FileFacts;
use super::network::Port;
use crate::settings::ListenAddress;

/// A service on this host answers its health check within milliseconds, and so does the server of names on a network.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More than a health check's response. Of a longer one, such as `/metrics`, the beginning will do.
const MAX_RESPONSE: usize = 16 * 1024;
/// Network file systems by the type that the kernel states (statfs(2), `linux/magic.h`).
const NETWORK_FILE_SYSTEMS: [(u32, &str); 8] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB 2"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
];

/// Returns the facts about an SQLite file. It must exist.
pub(super) fn file(path: &Path) -> io::Result<FileFacts> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let system = statfs(path)?;
    let kind = system.f_type as u32; // signed on some architectures
    let network = NETWORK_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name);
    let may = |path: &Path, what: Access| access(path, what).is_ok();
    Ok(FileFacts {
        is_writable: may(path, Access::READ_OK | Access::WRITE_OK)
            && may(directory, Access::WRITE_OK | Access::EXEC_OK),
        network,
        free: system.f_bavail.saturating_mul(system.f_bsize.unsigned_abs()),
    })
}

/// Returns the address of this host that a listener at `address` would get.
pub(super) async fn local(address: &ListenAddress) -> io::Result<SocketAddr> {
    let address = address.clone();
    tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(move || address.local())).await??
}

/// Returns whether `address` can be listened on. If it is taken, the program there is a service of Redial if
/// the response to `path` contains `mark`.
pub(super) async fn port(address: SocketAddr, path: &str, mark: &str) -> Port {
    match bind(address) {
        Ok(()) => Port::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let answer = tokio::time::timeout(TIMEOUT, begin_of_response(address, path)).await;
            match answer {
                Ok(Ok(text)) if text.contains(mark) => Port::Ours,
                _ => Port::Taken,
            }
        }
        Err(error) => Port::Impossible(error.to_string()),
    }
}

/// Binds like a service but does not listen, so that a service that starts at the same moment gets the port.
fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

async fn begin_of_response(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let ip = match address.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
    let url = format!("http://{}{path}", SocketAddr::new(ip, address.port()));
    let (mut response, mut begin) = (client.get(url).send().await?, Vec::new());
    while begin.len() < MAX_RESPONSE
        && let Some(chunk) = response.chunk().await?
    {
        begin.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&begin).into_owned())
}

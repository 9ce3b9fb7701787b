//! The name servers and the hosts file of the system, read again when they change.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_resolver::Hosts;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::system_conf::read_system_conf;
use parking_lot::Mutex;

use crate::dns::names::Names;

/// The system's name servers and hosts file. Both files are read again when one has changed.
pub(crate) struct SystemNames {
    timeout: Duration,
    state: Mutex<(Modified, Arc<Names>)>,
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Modification times of the two files, `None` for a missing one.
type Modified = [Option<SystemTime>; 2];

impl SystemNames {
    /// `timeout` is the limit of one lookup.
    pub(crate) fn new(timeout: Duration) -> Result<SystemNames, NetError> {
        let modified = modified();
        Ok(SystemNames { timeout, state: Mutex::new((modified, Arc::new(read(timeout)?))) })
    }

    /// Returns the name servers to use now.
    pub(crate) fn current(&self) -> Arc<Names> {
        let modified = modified();
        let mut state = self.state.lock();
        if state.0 != modified {
            match read(self.timeout) {
                Ok(names) => {
                    tracing::info!("{RESOLV_CONF} and {HOSTS} read again");
                    *state = (modified, Arc::new(names));
                }
                Err(error) => tracing::warn!(%error, "{RESOLV_CONF} and {HOSTS} not read again"),
            }
        }
        state.1.clone()
    }
}

fn modified() -> Modified {
    [RESOLV_CONF, HOSTS].map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok())
}

fn read(timeout: Duration) -> Result<Names, NetError> {
    let (config, options) = match read_system_conf() {
        Err(NetError::Io(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Other) =>
        {
            tracing::warn!(%error, "{RESOLV_CONF} lists no name server; using 127.0.0.1");
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
        }
        read => read?,
    };
    let hosts = match Hosts::from_system() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Hosts::default(),
        read => read?,
    };
    Names::new(config, options, hosts, timeout)
}

//! The name servers and the hosts file of the system, read again when they change.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use hickory_resolver::Hosts;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::system_conf::read_system_conf;
use parking_lot::Mutex;

use crate::dns::names::{MAX_SERVERS, Names};
use crate::dns::resolver::lookup_timeout;
use crate::settings::DispatcherError;

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
    let (config, options) = configuration()?;
    let hosts = match Hosts::from_system() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Hosts::default(),
        read => read?,
    };
    Names::new(config, options, hosts, timeout)
}

fn configuration() -> Result<(ResolverConfig, ResolverOpts), NetError> {
    match read_system_conf() {
        Err(NetError::Io(error))
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Other) =>
        {
            tracing::warn!(%error, "{RESOLV_CONF} lists no name server; using 127.0.0.1");
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            Ok((ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default()))
        }
        read => read,
    }
}

/// A name server of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// Its address.
    pub address: IpAddr,
    /// Whether it responds, whatever the response.
    pub responds: bool,
}

/// Queries each name server of the system that a dispatcher would use, with the time limit of its lookups.
pub async fn query_name_servers(connect_timeout: Duration) -> Result<Vec<NameServer>, DispatcherError> {
    let (config, options) = configuration()?;
    let (_, _, servers) = config.into_parts();
    query_each(servers, &options, lookup_timeout(connect_timeout)).await
}

async fn query_each(
    servers: Vec<NameServerConfig>,
    options: &ResolverOpts,
    timeout: Duration,
) -> Result<Vec<NameServer>, DispatcherError> {
    let queries = servers.into_iter().take(MAX_SERVERS).map(async |server| {
        let address = server.ip;
        let config = ResolverConfig::from_name_servers(vec![server]);
        let names = Names::new(config, options.clone(), Hosts::default(), timeout)?;
        Ok(NameServer { address, responds: names.respond().await })
    });
    try_join_all(queries).await
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::ResponseCode;

    use super::*;
    use crate::dns::test_name_server::{self, Reply};

    #[tokio::test]
    async fn a_name_server_that_responds_anything_is_told_from_a_silent_one() {
        const TIMEOUT: Duration = Duration::from_secs(1);
        let refuses = test_name_server::NameServer::start(|_, _| Reply::Code(ResponseCode::Refused)).await;
        let is_silent = test_name_server::NameServer::start(|_, _| Reply::Silence).await;
        let servers = [refuses.config(), is_silent.config()].concat();
        let found = query_each(servers, &ResolverOpts::default(), TIMEOUT).await.unwrap();
        assert_eq!(found.iter().map(|server| server.responds).collect::<Vec<_>>(), [true, false]);
    }
}

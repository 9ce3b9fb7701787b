//! The policy for URLs and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;
use url::Host;

use crate::special::{block_name, block_names};
use crate::{Nat64Prefix, PortRange, TargetUrl};

/// The rules of a [`Policy`]: the settings `egress.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Ranges that may be called although they are not public.
    pub allow: Vec<IpNet>,
    /// Ranges that may not be called, even if they are public or in `allow`.
    pub deny: Vec<IpNet>,
    /// Ports that may be called.
    pub ports: Vec<PortRange>,
    /// Whether plain http is refused.
    pub https_only: bool,
    /// NAT64 prefixes. Each address in one is judged as the IPv4 address it embeds.
    pub nat64: Vec<Nat64Prefix>,
}

/// Allows public addresses on the ports of [`PortRange::DEFAULT`].
impl Default for Rules {
    fn default() -> Self {
        let ports = PortRange::DEFAULT.to_vec();
        Self { allow: Vec::new(), deny: Vec::new(), ports, https_only: false, nat64: Vec::new() }
    }
}

/// Decides which URLs and addresses may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Rules,
}

/// Why a target may not be called.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The address is in a refused range.
    #[error("address {address} is refused: {range}")]
    Address {
        /// The address as passed to [`Policy::judge_address`].
        address: IpAddr,
        /// The range's name.
        range: &'static str,
    },
    /// The scheme is http, but only https may be called.
    #[error("http is refused: only https may be called")]
    PlainHttp,
    /// The port is in no range of [`Rules::ports`].
    #[error("port {0} is refused")]
    Port(u16),
    /// The name always means this machine.
    #[error("host {0} is refused: loopback")]
    Name(String),
}

impl Default for Policy {
    fn default() -> Self {
        Self::from(Rules::default())
    }
}

impl From<Rules> for Policy {
    fn from(mut rules: Rules) -> Self {
        for net in rules.allow.iter_mut().chain(&mut rules.deny) {
            *net = canonical(*net);
        }
        Self { rules }
    }
}

impl Policy {
    /// Returns the default policy with the ranges of `allow` added.
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self::from(Rules { allow, ..Rules::default() })
    }

    /// Judges one address. Must be called for each address just before connecting to it. An IPv4-mapped IPv6
    /// address, or one in a NAT64 prefix, is judged as the IPv4 address it reaches.
    pub fn judge_address(&self, address: IpAddr) -> Result<(), Refused> {
        match self.refusal(address.to_canonical()) {
            Some(range) => Err(Refused::Address { address, range }),
            None => Ok(()),
        }
    }

    /// Judges a URL without resolving its host: scheme, port, an address as host, and names that mean this
    /// machine by definition (RFC 6761). Any other name passes; its addresses are judged when connecting.
    pub fn judge_url(&self, target: &TargetUrl) -> Result<(), Refused> {
        if self.rules.https_only && target.url().scheme() != "https" {
            return Err(Refused::PlainHttp);
        }
        let port = target.port();
        if !self.rules.ports.iter().any(|range| range.contains(port)) {
            return Err(Refused::Port(port));
        }
        match target.host() {
            Host::Ipv4(address) => self.judge_address(address.into()),
            Host::Ipv6(address) => self.judge_address(address.into()),
            Host::Domain(name) if means_this_machine(name) && !self.opens_loopback() => {
                Err(Refused::Name(name.to_owned()))
            }
            Host::Domain(_) => Ok(()),
        }
    }

    /// Returns the name of the range for which `address` is refused. `address` must not be IPv4-mapped.
    fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let Rules { allow, deny, nat64, .. } = &self.rules;
        if deny.iter().any(|net| net.contains(&address)) {
            return Some("denied by this installation");
        }
        if let IpAddr::V6(translated) = address {
            let mut prefixes = nat64.iter().filter(|prefix| prefix.contains(translated)).peekable();
            if prefixes.peek().is_some() {
                return prefixes.find_map(|prefix| match prefix.embedded(translated) {
                    Some(reached) => self.refusal(reached.into()),
                    None => Some("NAT64"),
                });
            }
        }
        if allow.iter().any(|net| net.contains(&address)) { None } else { block_name(address) }
    }

    /// Returns the ranges of [`Rules::allow`] that open refused blocks, with the names of these.
    pub fn opened(&self) -> Vec<(IpNet, Vec<&'static str>)> {
        let Rules { allow, deny, .. } = &self.rules;
        let is_effective = |net: &&IpNet| !deny.iter().any(|denied| denied.contains(*net));
        let opened = allow.iter().filter(is_effective).map(|net| (*net, block_names(net)));
        opened.filter(|(_, blocks)| !blocks.is_empty()).collect()
    }

    fn opens_loopback(&self) -> bool {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        loopback.into_iter().any(|address| self.judge_address(address).is_ok())
    }
}

/// `name` must be in lower case, like any host of a [`TargetUrl`].
fn means_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Returns a range of IPv4-mapped addresses as an IPv4 range, and any other range unchanged.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(mapped) = net else { return net };
    let ipv4 = mapped.prefix_len().checked_sub(96).zip(mapped.addr().to_ipv4_mapped());
    ipv4.and_then(|(length, address)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

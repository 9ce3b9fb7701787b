//! Which URLs and addresses may be called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;
use url::Host;

use crate::special::block_name;
use crate::{Nat64Prefix, PortRange, TargetUrl};

/// What a [`Policy`] is made of: the settings `egress.*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Ranges that may be called although they are not public.
    pub allow: Vec<IpNet>,
    /// Ranges that may not be called, public or allowed.
    pub deny: Vec<IpNet>,
    /// Ports that may be called.
    pub ports: Vec<PortRange>,
    /// Whether nothing may be called over plain http.
    pub https_only: bool,
    /// Prefixes whose addresses are judged as the IPv4 addresses within.
    pub nat64: Vec<Nat64Prefix>,
}

/// Public addresses, on [`PortRange::DEFAULT`].
impl Default for Rules {
    fn default() -> Self {
        let ports = PortRange::DEFAULT.to_vec();
        Self { allow: Vec::new(), deny: Vec::new(), ports, https_only: false, nat64: Vec::new() }
    }
}

/// What may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Rules,
}

/// The target may not be called.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The address is in a refused range.
    #[error("address {address} is refused: {range}")]
    Address {
        /// As it was given.
        address: IpAddr,
        /// The range's name.
        range: &'static str,
    },
    /// Plain http, where only https may be called.
    #[error("http is refused: only https may be called")]
    PlainHttp,
    /// None of the ports that may be called.
    #[error("port {0} is refused")]
    Port(u16),
    /// A name that can only mean this machine.
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
    /// The default policy that also lets through the ranges of `allow`.
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self::from(Rules { allow, ..Rules::default() })
    }

    /// Judges one address, to be asked for each one just before connecting to it. An IPv4-mapped IPv6 address, and
    /// one of a NAT64 prefix, is judged as the IPv4 address it reaches.
    pub fn judge_address(&self, address: IpAddr) -> Result<(), Refused> {
        match self.refusal(address.to_canonical()) {
            Some(range) => Err(Refused::Address { address, range }),
            None => Ok(()),
        }
    }

    /// Judges what a URL tells without resolving: scheme, port, an address as host, and names that are this machine
    /// by definition (RFC 6761). Any other name passes here, and its addresses are judged when connecting.
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

    /// Why an address that is not IPv4-mapped is refused: the name of its range.
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

    fn opens_loopback(&self) -> bool {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        loopback.into_iter().any(|address| self.judge_address(address).is_ok())
    }
}

/// `name` is in lower case: a [`TargetUrl`] host is normalised.
fn means_this_machine(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// A range of IPv4-mapped addresses as the IPv4 range it means.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(mapped) = net else { return net };
    let ipv4 = mapped.prefix_len().checked_sub(96).zip(mapped.addr().to_ipv4_mapped());
    ipv4.and_then(|(length, address)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

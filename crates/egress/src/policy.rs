//! Which addresses may be called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;
use thiserror::Error;
use url::Host;

use crate::TargetUrl;

/// Every refused range with its name; the first match names the refusal, so the narrower range stands first.
///
/// Source: IANA's special-purpose address registries. Ranges that are globally reachable there but mean a
/// service of the nearest network (AS112, AMT, relays), which may be ours, are refused with the rest. IPv6 is
/// an allow-list: the last three rows are everything outside 2000::/3.
const RANGES: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private network"),
    ("100.100.100.200/32", "cloud metadata"), // Alibaba Cloud
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "cloud metadata"), // Azure, the one that sits in public space
    ("169.254.0.0/16", "link-local and cloud metadata"),
    ("172.16.0.0/12", "private network"),
    ("192.0.0.0/24", "protocol assignments"), // Oracle Cloud's metadata is in here
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "AS112 anycast"),
    ("192.52.193.0/24", "AMT anycast"),
    ("192.88.99.0/24", "6to4 relay anycast"),
    ("192.168.0.0/16", "private network"),
    ("192.175.48.0/24", "AS112 anycast"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    // These carry an IPv4 address that a translator or tunnel on the way would call.
    ("::/96", "IPv4-compatible"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("2001::/32", "Teredo"),
    ("2002::/16", "6to4"),
    ("100::/64", "discard only"),
    ("2001::/23", "protocol assignments"),
    ("2001:db8::/32", "documentation"),
    ("2620:4f:8000::/48", "AS112 anycast"),
    ("3fff::/20", "documentation"),
    ("fd00:ec2::254/128", "cloud metadata"), // AWS
    ("fd20:ce::254/128", "cloud metadata"),  // Google Cloud
    ("fc00::/7", "private network"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("::/3", "not global unicast"),
    ("4000::/2", "not global unicast"),
    ("8000::/1", "not global unicast"),
];

static REFUSED: LazyLock<Vec<(IpNet, &str)>> = LazyLock::new(|| {
    let parsed = RANGES.iter().map(|&(range, name)| (range.parse().expect("RANGES holds CIDRs"), name));
    parsed.collect()
});

/// What may be called: public addresses, and the ranges opened by `egress.allow`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    allow: Vec<IpNet>,
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
    /// A name that can only mean this machine.
    #[error("host {0} is refused: loopback")]
    Name(String),
}

impl Policy {
    /// A policy that also lets through the ranges of `allow`.
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }

    /// Judges one address, to be asked for each one just before connecting to it. An IPv4-mapped IPv6 address
    /// is judged as the IPv4 address it reaches.
    pub fn judge_address(&self, address: IpAddr) -> Result<(), Refused> {
        let reached = address.to_canonical();
        if self.allow.iter().any(|net| net.contains(&reached)) {
            return Ok(());
        }
        match REFUSED.iter().find(|(net, _)| net.contains(&reached)) {
            Some(&(_, range)) => Err(Refused::Address { address, range }),
            None => Ok(()),
        }
    }

    /// Judges what a URL tells without resolving: an address as host, and names that are this machine by
    /// definition (RFC 6761). Any other name passes here, and its addresses are judged when connecting.
    pub fn judge_url(&self, target: &TargetUrl) -> Result<(), Refused> {
        match target.host() {
            Host::Ipv4(address) => self.judge_address(address.into()),
            Host::Ipv6(address) => self.judge_address(address.into()),
            Host::Domain(name) if means_this_machine(name) && !self.opens_loopback() => {
                Err(Refused::Name(name.to_owned()))
            }
            Host::Domain(_) => Ok(()),
        }
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

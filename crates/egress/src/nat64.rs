//! NAT64 prefixes: IPv6 addresses that a translator in the network maps to IPv4.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::Ipv6Net;
use thiserror::Error;

/// Index of the octet with bits 64 to 71, which must be zero (RFC 6052, section 2.2).
const RESERVED_OCTET: usize = 8;

/// A network-specific NAT64 prefix (RFC 6052). Each address in it embeds an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat64Prefix(Ipv6Net);

/// Why a text is not a valid [`Nat64Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Nat64PrefixError {
    /// Not an IPv6 address with a prefix length.
    #[error("expected an IPv6 prefix such as 2001:db8:64::/96")]
    Syntax,
    /// A length that RFC 6052 doesn't define.
    #[error("a NAT64 prefix has a length of 32, 40, 48, 56, 64 or 96")]
    Length,
    /// Bits 64 to 71 are not zero. Only a /96 is long enough to contain them.
    #[error("the bits 64 to 71 of a NAT64 prefix must be zero")]
    ReservedBits,
}

impl Nat64Prefix {
    pub(crate) fn contains(self, address: Ipv6Addr) -> bool {
        self.0.contains(&address)
    }

    /// Returns the IPv4 address embedded in `address`, which must be in this prefix. `None`: its reserved
    /// bits are not zero, so a translator may map it to anything.
    pub(crate) fn embedded(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = address.octets();
        if octets[RESERVED_OCTET] != 0 {
            return None;
        }
        let prefix = usize::from(self.0.prefix_len()) / 8;
        let mut rest = (prefix..octets.len()).filter(|&index| index != RESERVED_OCTET);
        let mut next = || rest.next().map(|index| octets[index]);
        Some(Ipv4Addr::new(next()?, next()?, next()?, next()?))
    }
}

impl FromStr for Nat64Prefix {
    type Err = Nat64PrefixError;

    fn from_str(text: &str) -> Result<Nat64Prefix, Nat64PrefixError> {
        let net: Ipv6Net = text.parse().map_err(|_| Nat64PrefixError::Syntax)?;
        let net = net.trunc();
        if !matches!(net.prefix_len(), 32 | 40 | 48 | 56 | 64 | 96) {
            return Err(Nat64PrefixError::Length);
        }
        if net.addr().octets()[RESERVED_OCTET] != 0 {
            return Err(Nat64PrefixError::ReservedBits);
        }
        Ok(Nat64Prefix(net))
    }
}

impl fmt::Display for Nat64Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

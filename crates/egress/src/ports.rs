//! Ranges of ports that may be called.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// One port or an inclusive range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

/// The text is not a valid [`PortRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected a port from 1 to 65535, or a range such as 1024-65535")]
pub struct PortRangeError;

impl PortRange {
    /// Ports 80, 443 and all unprivileged ports. By default, mail, name, file and directory services don't
    /// listen on these.
    pub const DEFAULT: [PortRange; 3] = [PortRange(80..=80), PortRange(443..=443), PortRange(1024..=65535)];

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> PortRange {
        PortRange(port..=port)
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<PortRange, PortRangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse().ok().filter(|&port| port != 0).ok_or(PortRangeError);
        let range = port(first)?..=port(last)?;
        if range.is_empty() { Err(PortRangeError) } else { Ok(PortRange(range)) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

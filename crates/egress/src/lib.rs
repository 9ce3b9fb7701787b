//! The egress policy: which URLs and addresses a callback may be sent to. No I/O: the caller resolves names
//! and has each address judged just before connecting to it.

mod nat64;
mod policy;
mod ports;
mod special;
mod target_url;

pub use nat64::{Nat64Prefix, Nat64PrefixError};
pub use policy::{Policy, Refused, Rules};
pub use ports::{PortRange, PortRangeError};
pub use target_url::{HostError, TargetUrl, TargetUrlError, normalize_host};

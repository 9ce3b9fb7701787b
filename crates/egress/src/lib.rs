//! Which URLs and addresses a callback may go to, pure. No IO: names are resolved by the caller, who then has
//! each address judged at the moment of connecting.

mod nat64;
mod policy;
mod ports;
mod special;
mod target_url;

pub use nat64::{Nat64Prefix, Nat64PrefixError};
pub use policy::{Policy, Refused, Rules};
pub use ports::{PortRange, PortRangeError};
pub use target_url::{HostError, MAX_URL_CHARS, TargetUrl, TargetUrlError, normalize_host};

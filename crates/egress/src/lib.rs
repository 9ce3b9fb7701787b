//! Which URLs and addresses a callback may go to, pure. No IO: names are resolved by the caller, who then has
//! each address judged at the moment of connecting.

mod policy;
mod target_url;

pub use policy::{Policy, Refused};
pub use target_url::{MAX_URL_CHARS, TargetUrl, TargetUrlError};

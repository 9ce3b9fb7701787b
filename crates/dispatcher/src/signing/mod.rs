//! Signing secrets: which are valid, opened, and signed with.

pub(crate) mod keys;
pub(crate) mod signer;

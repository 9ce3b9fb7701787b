//! Signing secrets: managing them, sealing them, and finding those that a request is signed with.

pub(crate) mod keyring;
pub(crate) mod manage;
pub(crate) mod rewrap;
pub(crate) mod signing;

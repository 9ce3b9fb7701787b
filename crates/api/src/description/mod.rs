//! The OpenAPI description, made from the table of calls.

pub(crate) mod openapi;
pub(crate) mod operation;

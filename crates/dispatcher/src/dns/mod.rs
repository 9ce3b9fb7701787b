//! Resolution of receivers' names.

pub(crate) mod names;
pub(crate) mod resolver;
pub(crate) mod system;
#[cfg(test)]
pub(crate) mod test_name_server;

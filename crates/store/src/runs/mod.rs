//! Runs: recording, reading, and erasing their data.

pub(crate) mod erase;
pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod to_deliver;

//! The engine's steps that touch the database, each for a batch: claiming, recording, recovering leases. What they write
//! is decided in the crate `engine`.

pub(crate) mod claim;
mod due;
pub(crate) mod finish;
pub(crate) mod holds;
mod late;
pub(crate) mod open;
pub(crate) mod recover;
pub(crate) mod relay;
pub(crate) mod transitions;

//! The engine's database steps, each for a batch: claims, records, recovers leases. The crate `engine`
//! decides what they write.

pub(crate) mod claim;
mod due;
pub(crate) mod finish;
pub(crate) mod holds;
mod late;
pub(crate) mod open;
pub(crate) mod recover;
pub(crate) mod relay;
pub(crate) mod transitions;

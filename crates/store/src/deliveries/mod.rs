//! Everything that changes or reads a delivery. The crate `engine` decides what the steps of a dispatcher
//! write.
//!
//! Accepting: `accept`, `redeliver`, `withdraw`. A dispatcher's steps, each for a batch: `claim` (by
//! `claim_jobs` or `relay`, which asks `due`), `finish` (with `late` results), `recover`, `holds`. What they
//! share: `open` and `transitions` lock and move an open delivery, `held` and `attempts` are rows. Reading:
//! `read`, `filter`, `backlog`.

pub(crate) mod accept;
mod attempts;
pub(crate) mod backlog;
pub(crate) mod claim;
pub(crate) mod claim_jobs;
mod due;
pub(crate) mod filter;
pub(crate) mod finish;
mod held;
pub(crate) mod holds;
mod late;
pub(crate) mod open;
pub(crate) mod read;
pub(crate) mod recover;
pub(crate) mod redeliver;
pub(crate) mod relay;
pub(crate) mod transitions;
pub(crate) mod withdraw;

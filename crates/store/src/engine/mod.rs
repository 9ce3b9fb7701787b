//! The two steps of an attempt that touch the database, in batches: claim before it, finish after it.

pub(crate) mod claim;
pub(crate) mod finish;
mod late;

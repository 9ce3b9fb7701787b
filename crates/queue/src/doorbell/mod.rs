//! The two ends of the queue, as the rest of the program sees them.

pub(crate) mod consumer;
pub(crate) mod publisher;

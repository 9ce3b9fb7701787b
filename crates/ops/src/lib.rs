//! What every process tells its operators: structured logs, and whether it is ready.

pub mod logging;
mod readiness;

pub use logging::LogFormat;
pub use readiness::{Readiness, silent};

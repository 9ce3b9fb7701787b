//! What every process tells its operators: structured logs, whether it is ready, and metrics.

pub mod logging;
pub mod metrics;
mod readiness;

pub use logging::LogFormat;
pub use metrics::Metrics;
pub use readiness::{Readiness, silent};

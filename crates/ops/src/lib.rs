//! What every process tells its operators: structured logs, whether it is ready, metrics and traces.

pub mod logging;
pub mod metrics;
mod readiness;
pub mod traces;

pub use logging::LogFormat;
pub use metrics::Metrics;
pub use readiness::{Readiness, silent};
pub use traces::Tracer;

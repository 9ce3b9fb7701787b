//! Structured logs on standard error.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::settings::LogFormat;

/// What libraries say that we say ourselves, better or more quietly.
const QUIET: &str = "lapin=off,actix_server=warn,actix_http=off,r2d2=off,rustls_platform_verifier=off";

/// Sends logs to standard error from now on. `filter` is `info`, `debug` or per-target directives.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{filter}"))?;
    // A complaint about a closed standard error would go there, and panic.
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => logs.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    Ok(())
}

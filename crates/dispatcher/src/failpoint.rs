//! Points at which failure tests stop the process.

/// A point at which a build for failure tests can be stopped: `FAILPOINTS=claimed=return` in the environment
/// makes the process send itself SIGSTOP there.
pub(crate) fn failpoint(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| {
        let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        tracing::warn!(?stopped, "stopped at a failpoint");
    });
}

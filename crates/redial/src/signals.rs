//! The signals that end a process.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from now on; resolves to the name of the first SIGTERM or SIGINT.
pub(crate) fn stop() -> impl Future<Output = &'static str> {
    let on = |kind| -> Signal { signal(kind).expect("a runtime with signals is running") };
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate()), on(SignalKind::interrupt()));
    async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

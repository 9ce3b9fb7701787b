//! Termination signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Registers the signal handlers at once. The future resolves to the name of the first SIGTERM or SIGINT.
pub(crate) fn stop() -> impl Future<Output = &'static str> {
    let on = |kind| -> Signal { signal(kind).expect("a Tokio runtime with signals enabled is running") };
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate()), on(SignalKind::interrupt()));
    async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

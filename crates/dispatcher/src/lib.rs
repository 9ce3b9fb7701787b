//! Sends deliveries to their receivers: claims attempts, signs and sends them, and records their results. Any
//! number of dispatchers can share one database and one queue.
//!
//! The state machine in `engine` decides what to do and when; this crate executes it. The path of an attempt
//! through the files: `driver` passes a doorbell or a tick to the machine → `transactions` claims → `attempt`
//! signs (`signer`) and sends (`sender`, `client`, `resolver`, measured by `trace`) → `transactions` records
//! → `report` logs.

mod attempt;
mod client;
mod driver;
mod failure;
mod headers;
mod keys;
mod names;
mod progress;
mod report;
mod request_body;
mod resolver;
mod response;
mod response_body;
mod retention;
mod sender;
mod shortage;
mod signer;
#[cfg(test)]
mod test_name_server;
mod tls;
mod trace;
mod transactions;

pub use engine::dispatch::Limits;
pub use engine::{LocalFailure, RetryPolicy};
pub use keys::{KeySource, KeySourceError};
pub use progress::Progress;
pub use retention::Retention;
pub use tls::Certificates;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::dispatch::Dispatch;
use queue::Consumer;
use store::{Keyring, Store};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempts;
use crate::driver::{Driver, State, now};
use crate::sender::Sender;
use crate::signer::Signer;

/// Settings of a dispatcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Limits of the state machine.
    pub limits: Limits,
    /// Timeout for connecting, part of an attempt's timeout.
    pub connect_timeout: Duration,
    /// Timeout for a response body once the head is complete. The part received by then is recorded.
    pub body_timeout: Duration,
    /// Certificates for TLS in addition to the system's.
    pub certificates: Certificates,
    /// How long after a promotion requests are also signed with the previous secret.
    pub secret_overlap: Duration,
    /// How long ended deliveries and runs are kept.
    pub retention: Retention,
    /// Timeout for a shutdown, including the attempts in flight.
    pub drain: Duration,
}

/// A dispatcher, ready to [run](Dispatcher::run).
pub struct Dispatcher {
    /// The database with the deliveries.
    pub store: Store,
    /// Decrypts signing secrets.
    pub keyring: Keyring,
    /// Source from which the keys are read again when `keyring` lacks one.
    pub key_source: KeySource,
    /// Which addresses may be called.
    pub egress: egress::Policy,
    /// Its settings.
    pub settings: Settings,
    /// Where it publishes its progress.
    pub progress: Progress,
}

/// Why a dispatcher could not start.
#[derive(Debug, Error)]
pub enum DispatcherError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The system's certificate authorities could not be loaded.
    #[error("the system's certificate authorities could not be loaded: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate file can't be used.
    #[error("{key}: {}: {problem}", path.display())]
    Certificates {
        /// The setting that names the file.
        key: &'static str,
        /// The file's path.
        path: PathBuf,
        /// What is wrong with the file.
        problem: String,
    },
    /// The system's resolver configuration could not be read.
    #[error("the system's configuration for resolving names could not be read: {0}")]
    Names(#[from] hickory_resolver::net::NetError),
}

/// Pause before an unavailable database is queried again for a secret.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);

/// A point at which a build for failure tests can be stopped: `FAILPOINTS=claimed=return` in the environment
/// makes the process send itself SIGSTOP there.
fn failpoint(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| {
        let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        tracing::warn!(?stopped, "stopped at a failpoint");
    });
}

impl Dispatcher {
    /// Works until `shutdown`, then claims no more and finishes the attempts in flight, for at most `drain`.
    pub async fn run(self, consumer: Consumer, shutdown: CancellationToken) -> Result<(), DispatcherError> {
        let Dispatcher { store, keyring, key_source, egress, settings, progress } = self;
        let clock = store.clock().clone();
        let attempts = Arc::new(Attempts {
            sender: Sender::new(&settings, egress, clock.clone())?,
            signer: Signer::new(store.clone(), keyring, key_source, settings.secret_overlap),
        });
        tracing::info!(max_in_flight = settings.limits.max_in_flight, "dispatching");
        tokio::spawn(retention::keep(store.clone(), settings.retention, shutdown.clone()));
        let driver = Driver {
            store,
            consumer,
            lease: settings.limits.lease,
            attempts,
            dispatch: Dispatch::new(settings.limits, rand::random(), now(&clock)),
            progress,
            state: State::default(),
        };
        let too_late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(settings.drain).await;
        };
        tokio::select! {
            () = driver.run(shutdown.clone()) => tracing::info!("stopped, nothing left in flight"),
            () = too_late => {
                tracing::warn!("stopped with attempts in flight; their leases will end as outcome_unknown");
            }
        }
        Ok(())
    }
}

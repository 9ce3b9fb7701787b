//! Brings deliveries to their receivers: claims attempts, signs and sends them, and records what came of them. Any
//! number of dispatchers share one database and one queue.
//!
//! What is done when is decided by `engine`'s state machine; this crate drives it. One attempt's way through the files:
//! `driver` hears a doorbell or a tick and hands it to the machine → `transactions` claims → `attempt` signs
//! (`signer`) and sends (`sender`, `client`, `resolver`, measured by `trace`) → `transactions` records → `report` logs.

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

/// How a dispatcher works.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What is decided within which limits.
    pub limits: Limits,
    /// How much of an attempt's budget connecting may take.
    pub connect_timeout: Duration,
    /// How long a response body may take once its head is complete. Whatever has come by then is recorded.
    pub body_timeout: Duration,
    /// Certificates for TLS beside the system's.
    pub certificates: Certificates,
    /// How long after a promotion requests are signed with the secret before, too.
    pub secret_overlap: Duration,
    /// How long what has ended is kept.
    pub retention: Retention,
    /// How long a shutdown may take, what is in flight included.
    pub drain: Duration,
}

/// One dispatcher.
pub struct Dispatcher {
    /// Where deliveries are.
    pub store: Store,
    /// Opens signing secrets.
    pub keyring: Keyring,
    /// Where keys that it lacks are looked for again.
    pub key_source: KeySource,
    /// Which addresses may be called.
    pub egress: egress::Policy,
    /// How it works.
    pub settings: Settings,
    /// Where it says how it gets on.
    pub progress: Progress,
}

/// Why a dispatcher could not start, or go on.
#[derive(Debug, Error)]
pub enum DispatcherError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// No TLS sessions can be set up.
    #[error("the system's certificate authorities could not be loaded: {0}")]
    Tls(#[from] rustls::Error),
    /// A file with certificates can't be used.
    #[error("{key}: {}: {problem}", path.display())]
    Certificates {
        /// The setting that names it.
        key: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Names can't be resolved.
    #[error("the system's configuration for resolving names could not be read: {0}")]
    Names(#[from] hickory_resolver::net::NetError),
}

/// How long to wait before a database that is away is asked again for a secret.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);

/// A place where a build for failure tests can be made to stop: the variable `FAILPOINTS=claimed=return` sends the
/// process SIGSTOP there.
fn failpoint(_name: &'static str) {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| {
        let stopped = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        tracing::warn!(?stopped, "stopped at a failpoint");
    });
}

impl Dispatcher {
    /// Works until `shutdown`, then claims nothing more and finishes what is in flight, for at most `drain`.
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

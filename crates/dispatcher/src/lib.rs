//! Sends deliveries to their receivers: claims attempts, signs and sends them, and records their results. Any
//! number of dispatchers can share one database and one queue.
//!
//! The state machine in `engine` decides what to do and when; this crate executes it. The path of an attempt
//! through the files: `driver` passes a doorbell or a tick to the machine → `transactions` claims → `attempt`
//! signs (`signer`) and sends (`sender`, `client`, `resolver`, measured by `trace`, traced by `span`) → `transactions` records
//! → `report` logs.

mod attempt;
mod dns;
mod driver;
mod exchange;
mod failpoint;
mod progress;
mod report;
mod retention;
mod sampling;
mod settings;
mod shortage;
mod signing;
mod transactions;

pub use dns::system::{NameServer, query_name_servers};
pub use engine::dispatch::Limits;
pub use engine::{LocalFailure, RetryPolicy};
pub use progress::Progress;
pub use retention::Retention;
pub use settings::{Certificates, DispatcherError, Settings};
pub use signing::keys::{KeySource, KeySourceError};

use std::sync::Arc;

use engine::dispatch::Dispatch;
use ops::{Metrics, Tracer};
use queue::Consumer;
use store::{Keyring, Store};
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempts;
use crate::driver::{Driver, State, now};
use crate::exchange::sender::Sender;
use crate::signing::signer::Signer;

/// Fails if the certificates for TLS to receivers can't be used: those of `certificates`, or the system's.
pub fn check_certificates(certificates: &Certificates) -> Result<(), DispatcherError> {
    exchange::tls::config(certificates).map(drop)
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
    /// Counts attempts and what comes of them.
    pub metrics: Metrics,
    /// Traces attempts.
    pub tracer: Tracer,
}

impl Dispatcher {
    /// Works until `shutdown`, then claims no more and finishes the attempts in flight, for at most `drain`.
    pub async fn run(self, consumer: Consumer, shutdown: CancellationToken) -> Result<(), DispatcherError> {
        let Dispatcher { store, keyring, key_source, egress, settings, progress, metrics, tracer } = self;
        let clock = store.clock().clone();
        let attempts = Arc::new(Attempts {
            sender: Sender::new(&settings, egress, clock.clone())?,
            signer: Signer::new(store.clone(), keyring, key_source, settings.secret_overlap),
            tracer,
        });
        tracing::info!(max_in_flight = settings.limits.max_in_flight, "dispatching");
        tokio::spawn(retention::keep(store.clone(), settings.retention, shutdown.clone()));
        tokio::spawn(sampling::keep(store.clone(), metrics.clone(), shutdown.clone()));
        metrics.in_flight_limit.set([], settings.limits.max_in_flight as f64);
        let driver = Driver {
            store,
            consumer,
            lease: settings.limits.lease,
            attempts,
            dispatch: Dispatch::new(settings.limits, rand::random(), now(&clock)),
            progress,
            metrics,
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

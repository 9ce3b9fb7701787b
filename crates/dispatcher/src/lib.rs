//! Brings deliveries to their receivers: claims attempts, signs and sends them, settles what came of them and
//! writes it down. Any number of dispatchers share one database and one queue.
//!
//! One attempt's way through the files: `intake` takes a doorbell or a due row and claims it → `attempt`
//! signs (`signer`), sends (`sender`, `resolver`) and settles (`settle`) it → `finisher` records it in a batch. What
//! each of them does to the database, and what it decides, is in `steps`.

mod attempt;
mod finisher;
mod intake;
mod outcome;
mod resolver;
mod sender;
mod settle;
mod signer;
pub mod steps;

pub use outcome::{Answer, Outcome};
pub use settle::RetryPolicy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use queue::Consumer;
use store::{Keyring, Store};
use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::Attempts;
use crate::sender::Sender;
use crate::signer::Signer;

/// How a dispatcher works.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The most attempts in progress at once.
    pub max_in_flight: usize,
    /// How long a claimed attempt stays this dispatcher's. Longer than `timeout`.
    pub lease: Duration,
    /// The total budget of one attempt, response body included.
    pub timeout: Duration,
    /// How much of it connecting may take.
    pub connect_timeout: Duration,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How long a shutdown may take, what is in flight included.
    pub drain: Duration,
}

/// One dispatcher.
pub struct Dispatcher {
    /// Where deliveries are.
    pub store: Store,
    /// Opens signing secrets.
    pub keyring: Keyring,
    /// Which addresses may be called.
    pub egress: egress::Policy,
    /// How it works.
    pub settings: Settings,
    /// Beats as long as it works.
    pub pulse: Pulse,
}

/// Whether a dispatcher gets on with its work. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse(watch::Sender<Progress>);

#[derive(Clone, Copy, Debug)]
struct Progress {
    claimed_at: Instant,
    writing_since: Option<Instant>,
    keeping_since: Option<Instant>,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse(watch::Sender::new(Progress {
            claimed_at: Instant::now(),
            writing_since: None,
            keeping_since: None,
        }))
    }
}

impl Pulse {
    fn claimed(&self) {
        self.0.send_modify(|progress| progress.claimed_at = Instant::now());
    }

    /// A batch of results is being written, or is no more.
    fn writes(&self, does: bool) {
        self.0.send_modify(|progress| progress.writing_since = does.then(Instant::now));
    }

    /// There are results that were refused, or there are none any more.
    fn keeps(&self, does: bool) {
        self.0.send_modify(|progress| progress.keeping_since = does.then(Instant::now));
    }

    /// When it last claimed, or found nothing to claim.
    pub fn claimed_at(&self) -> Instant {
        self.0.borrow().claimed_at
    }

    /// Since when it has had results that it could not record.
    pub fn unrecorded_since(&self) -> Option<Instant> {
        let Progress { writing_since, keeping_since, .. } = *self.0.borrow();
        writing_since.into_iter().chain(keeping_since).min()
    }
}

/// Why a dispatcher could not start, or go on.
#[derive(Debug, Error)]
pub enum DispatcherError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// What records results has panicked.
    #[error("results could not be recorded: {0}")]
    Finisher(tokio::task::JoinError),
}

/// The most attempts claimed or finished in one transaction: from here on the cost of a commit no longer shows.
const BATCH: usize = 256;

/// How long to wait before a database that is away is asked again.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);
/// As long as a transaction may take: longer than the server lets any statement take, for when it says nothing at all.
const DATABASE_PATIENCE: Duration = Duration::from_secs(40);

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
        let sender = Sender::new(&self.settings, self.egress, self.store.clock().clone())?;
        let signer = Signer::new(self.store.clone(), self.keyring);
        let (results, finished) = mpsc::channel(BATCH);
        // Without its finisher a dispatcher must not go on sending.
        let stop = shutdown.child_token();
        let finisher = tokio::spawn({
            let (store, guard) = (self.store.clone(), stop.clone().drop_guard());
            let pulse = self.pulse.clone();
            async move {
                finisher::run(store, finished, pulse).await;
                drop(guard);
            }
        });
        let in_flight = TaskTracker::new();
        let attempts = Arc::new(Attempts {
            clock: self.store.clock().clone(),
            sender,
            signer,
            timeout: self.settings.timeout,
            retry: self.settings.retry,
            results,
        });

        let slots = Arc::new(Semaphore::new(self.settings.max_in_flight));
        tracing::info!(max_in_flight = self.settings.max_in_flight, "dispatching");
        let intake = intake::Intake {
            store: self.store,
            consumer,
            slots,
            lease: self.settings.lease,
            attempts,
            in_flight: in_flight.clone(),
            pulse: self.pulse,
        };
        let abort = finisher.abort_handle();
        let work = async {
            intake.run(stop).await;
            in_flight.close();
            in_flight.wait().await;
            finisher.await
        };
        let too_late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(self.settings.drain).await;
        };
        tokio::select! {
            recorded = work => match recorded {
                Ok(()) => tracing::info!("stopped, nothing left in flight"),
                Err(error) => return Err(DispatcherError::Finisher(error)),
            },
            () = too_late => {
                abort.abort();
                tracing::warn!("stopped with attempts in flight; their leases will end as outcome_unknown");
            }
        }
        Ok(())
    }
}

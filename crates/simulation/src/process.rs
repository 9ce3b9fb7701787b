//! In-memory state of a dispatcher process.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::{ClaimId, Destination, Job, Timestamp};
use engine::dispatch::Dispatch;
use engine::{Claimed, LocalFailure, Outcome, SendWindow};

use crate::actors::Message;
use crate::promise::CLOCK_ERROR;
use crate::work::Transaction;

/// A dispatcher's host, with its process while it runs.
#[derive(Default)]
pub(crate) struct Dispatcher {
    /// Error of the host's clock relative to the database's clock, which it follows, in microseconds.
    pub(crate) clock_error: i64,
    /// Local failure that currently keeps the host from sending.
    pub(crate) trouble: Option<LocalFailure>,
    /// `None` while it is not running.
    pub(crate) process: Option<Process>,
}

/// State of a running process. A kill loses all of it.
pub(crate) struct Process {
    /// The production state machine, which makes all decisions.
    pub(crate) machine: Dispatch,
    /// Whether it is stopped by SIGSTOP.
    pub(crate) is_frozen: bool,
    /// Whether it is shutting down.
    pub(crate) is_stopping: bool,
    /// Whether it consumes messages.
    pub(crate) is_consuming: bool,
    /// Messages not yet passed to the machine.
    pub(crate) prefetched: Vec<Message>,
    /// Messages passed to the machine, by token.
    pub(crate) heard: BTreeMap<u64, Message>,
    /// Jobs of messages that returned to the queue after they were passed to the machine.
    pub(crate) taken_back: Vec<Job>,
    /// Messages whose acknowledgement has not reached the broker yet.
    pub(crate) acknowledged: Vec<Message>,
    pub(crate) transactions: Vec<Transaction>,
    /// The claim whose last try had an unknown outcome, if any.
    pub(crate) doubtful_claim: Option<ClaimId>,
    pub(crate) attempts: Vec<Attempt>,
}

/// An attempt in flight.
pub(crate) struct Attempt {
    pub(crate) claimed: Claimed,
    pub(crate) send_before: Duration,
    /// When its first step was taken, in monotonic time.
    pub(crate) began: Duration,
    pub(crate) state: State,
    /// When its next step becomes possible.
    pub(crate) ready_at: Timestamp,
}

/// Progress of an attempt.
#[derive(Clone)]
pub(crate) enum State {
    /// Not started.
    Claimed,
    /// Connecting.
    Begun(SendWindow),
    /// The request is written. The outcome becomes known at `ready_at`.
    Sent(Outcome),
}

impl Process {
    pub(crate) fn new(machine: Dispatch) -> Process {
        Process {
            machine,
            is_frozen: false,
            is_stopping: false,
            is_consuming: true,
            prefetched: Vec::new(),
            heard: BTreeMap::new(),
            taken_back: Vec::new(),
            acknowledged: Vec::new(),
            transactions: Vec::new(),
            doubtful_claim: None,
            attempts: Vec::new(),
        }
    }

    /// Returns the number of attempts in flight to a destination, and their bytes.
    pub(crate) fn in_flight_to(&self, destination: Destination) -> (usize, u64) {
        let to = self.attempts.iter().filter(|attempt| attempt.claimed.held.destination == destination);
        to.fold((0, 0), |(count, bytes), attempt| (count + 1, bytes + attempt.claimed.payload.len() as u64))
    }

    /// Whether the unacknowledged messages include `job` at least as often as `jobs` does.
    pub(crate) fn has_message_of(&self, job: &Job, jobs: &[Job]) -> bool {
        let messages = self.heard.values().map(|message| &message.job).chain(&self.taken_back);
        messages.filter(|other| *other == job).count() >= jobs.iter().filter(|other| *other == job).count()
    }

    /// Returns when the machine needs a tick that can't be late. Only a claim with an unknown outcome or
    /// unrecorded results require one.
    pub(crate) fn urgent_at(&self) -> Option<Duration> {
        let is_urgent = self.doubtful_claim.is_some() || self.machine.unrecorded_since().is_some();
        if is_urgent { self.machine.wake_at() } else { None }
    }

    /// Returns when the earliest step that must be prompt becomes, or became, possible.
    pub(crate) fn ready_at(&self) -> Option<Timestamp> {
        let attempts = self.attempts.iter().map(|attempt| attempt.ready_at);
        let transactions = self.transactions.iter().map(|transaction| transaction.since);
        let urgent = self
            .urgent_at()
            .map(|at| Timestamp::from_micros(i64::try_from(at.as_micros()).unwrap_or(i64::MAX)));
        attempts.chain(transactions).chain(urgent).min()
    }
}

impl Dispatcher {
    /// Whether the database's clock has been set since this one was aligned with it.
    pub(crate) fn is_misaligned(&self) -> bool {
        Duration::from_micros(self.clock_error.unsigned_abs()) > CLOCK_ERROR
    }

    /// Returns the process, if it is running and not frozen.
    pub(crate) fn running(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| !process.is_frozen)
    }
}

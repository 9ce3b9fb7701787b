//! What a dispatcher's process holds in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use contracts::{ClaimId, Destination, Job, Timestamp};
use engine::dispatch::Dispatch;
use engine::{Claimed, LocalFailure, Outcome, SendWindow};

use crate::broker::Message;
use crate::transactions::Transaction;
use crate::world::CLOCK_ERROR;

/// A dispatcher's process on its host.
#[derive(Default)]
pub(crate) struct Dispatcher {
    /// The error of its clock, which follows the database's, in microseconds.
    pub(crate) clock_error: i64,
    /// Why this host can't send at present.
    pub(crate) trouble: Option<LocalFailure>,
    /// `None`: it is not running.
    pub(crate) process: Option<Process>,
}

/// A running process. A kill loses all of this.
pub(crate) struct Process {
    /// All its decisions: the shipped machine.
    pub(crate) machine: Dispatch,
    /// Stopped by SIGSTOP.
    pub(crate) is_frozen: bool,
    /// Asked to stop.
    pub(crate) is_stopping: bool,
    /// Whether it takes messages.
    pub(crate) is_consuming: bool,
    /// Messages that the machine does not know of yet.
    pub(crate) prefetched: Vec<Message>,
    /// Messages that the machine knows of, by token.
    pub(crate) heard: BTreeMap<u64, Message>,
    /// Jobs of messages that returned to the queue while the machine knew of them.
    pub(crate) taken_back: Vec<Job>,
    /// Messages whose acknowledgement is on its way.
    pub(crate) acknowledged: Vec<Message>,
    pub(crate) transactions: Vec<Transaction>,
    /// A claim whose last try had an unknown outcome.
    pub(crate) doubtful_claim: Option<ClaimId>,
    pub(crate) attempts: Vec<Attempt>,
}

/// An attempt in flight.
pub(crate) struct Attempt {
    pub(crate) claimed: Claimed,
    pub(crate) send_before: Duration,
    /// When its first step was made, on monotonic time.
    pub(crate) began: Duration,
    pub(crate) state: State,
    /// When its next step becomes possible.
    pub(crate) ready_at: Timestamp,
}

/// How far an attempt has come.
#[derive(Clone)]
pub(crate) enum State {
    /// Not begun.
    Claimed,
    /// Connecting.
    Begun(SendWindow),
    /// Written, with the outcome that will be known at `ready_at`.
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

    /// How many attempts to a destination are in flight, and their bytes.
    pub(crate) fn in_flight_to(&self, destination: Destination) -> (usize, u64) {
        let to = self.attempts.iter().filter(|attempt| attempt.claimed.held.destination == destination);
        to.fold((0, 0), |(count, bytes), attempt| (count + 1, bytes + attempt.claimed.payload.len() as u64))
    }

    /// Whether there are as many unacknowledged messages with this job as `jobs` contains it.
    pub(crate) fn has_message_of(&self, job: &Job, jobs: &[Job]) -> bool {
        let messages = self.heard.values().map(|message| &message.job).chain(&self.taken_back);
        messages.filter(|other| *other == job).count() >= jobs.iter().filter(|other| *other == job).count()
    }

    /// When the machine needs a tick that can't be late: it has a claim in doubt or results to record.
    pub(crate) fn urgent_at(&self) -> Option<Duration> {
        let is_urgent = self.doubtful_claim.is_some() || self.machine.unrecorded_since().is_some();
        if is_urgent { self.machine.wake_at() } else { None }
    }

    /// When the earliest step that must be prompt becomes, or became, possible.
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
    /// Whether the database's clock was set since this one was aligned with it.
    pub(crate) fn is_misaligned(&self) -> bool {
        Duration::from_micros(self.clock_error.unsigned_abs()) > CLOCK_ERROR
    }

    /// Its process, if it is running and not frozen.
    pub(crate) fn running(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| !process.is_frozen)
    }
}

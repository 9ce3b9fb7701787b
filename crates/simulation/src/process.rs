//! What a dispatcher's process holds in memory, and loses.

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
    /// How far its clock, which follows the database's, is off it in microseconds.
    pub(crate) clock_error: i64,
    /// Why attempts of this host can't be sent at present.
    pub(crate) trouble: Option<LocalFailure>,
    /// The process, while there is one.
    pub(crate) process: Option<Process>,
}

/// What is lost when it is killed.
pub(crate) struct Process {
    /// All its decisions: the shipped machine.
    pub(crate) machine: Dispatch,
    /// Stopped by a signal: it makes no step.
    pub(crate) is_frozen: bool,
    /// It has been told to stop.
    pub(crate) is_stopping: bool,
    /// Whether it takes messages.
    pub(crate) is_consuming: bool,
    /// Messages given to it that the machine has not heard of.
    pub(crate) prefetched: Vec<Message>,
    /// Messages that the machine has heard of, by token.
    pub(crate) heard: BTreeMap<u64, Message>,
    /// Jobs of messages that the broker has taken back from the machine's hands.
    pub(crate) taken_back: Vec<Job>,
    /// Messages that are to be acknowledged.
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
    /// When it was begun to be made, on monotonic time.
    pub(crate) began: Duration,
    pub(crate) state: State,
    /// Since when its next step can be made, or from when on.
    pub(crate) ready_at: Timestamp,
}

/// How far an attempt has come.
#[derive(Clone)]
pub(crate) enum State {
    /// It can be begun.
    Claimed,
    /// It is connecting.
    Begun(SendWindow),
    /// It is written; that is what will be learned.
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

    /// Whether there is a message that is not acknowledged for each time that `jobs` has this job.
    pub(crate) fn has_message_of(&self, job: &Job, jobs: &[Job]) -> bool {
        let messages = self.heard.values().map(|message| &message.job).chain(&self.taken_back);
        messages.filter(|other| *other == job).count() >= jobs.iter().filter(|other| *other == job).count()
    }

    /// When the machine must be told that time has passed, lest it is late with what can't wait: a claim in doubt, or
    /// results. Its looks at the database can.
    pub(crate) fn urgent_at(&self) -> Option<Duration> {
        let is_urgent = self.doubtful_claim.is_some() || self.machine.unrecorded_since().is_some();
        if is_urgent { self.machine.wake_at() } else { None }
    }

    /// Since when the step that has waited longest could be made, or from when on the next one can.
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

    /// Its process, if it runs and is not frozen.
    pub(crate) fn running(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| !process.is_frozen)
    }
}

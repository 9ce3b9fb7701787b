//! What processes and the broker hold in memory, and lose.

use std::time::Duration;

use contracts::{ClaimId, Job, Timestamp};
use dispatcher::Outcome;
use dispatcher::steps::{Lease, Work};
use store::{Claimed, Finished};

use crate::world::CLOCK_ERROR;

/// An api.
#[derive(Default)]
pub(crate) struct Api {
    /// Doorbells not published yet.
    pub(crate) buffer: Vec<Job>,
}

/// A message, known by a number of its own, since a job may be in several.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) number: u64,
    pub(crate) job: Job,
}

/// A dispatcher.
#[derive(Default)]
pub(crate) struct Dispatcher {
    pub(crate) is_paused: bool,
    /// How far its aligned clock is off the database's, in microseconds.
    pub(crate) clock_error: i64,
    /// How far its host's clock is off.
    pub(crate) host_error: i64,
    /// Messages given to it and not acknowledged.
    pub(crate) held: Vec<Message>,
    pub(crate) claim: Option<Claim>,
    /// Messages whose claim has committed.
    pub(crate) served: Vec<u64>,
    pub(crate) attempts: Vec<InFlight>,
    pub(crate) results: Vec<Result>,
}

/// A claim that is being tried.
pub(crate) struct Claim {
    pub(crate) id: ClaimId,
    pub(crate) work: Work,
    pub(crate) messages: Vec<u64>,
    /// When the last try was over.
    pub(crate) tried_by: Option<Duration>,
    pub(crate) ready_since: Timestamp,
}

/// An attempt being made.
pub(crate) struct InFlight {
    pub(crate) claimed: Claimed,
    pub(crate) lease: Lease,
    pub(crate) state: State,
    pub(crate) ready_since: Timestamp,
}

/// How far an attempt has come.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Claimed,
    /// Connecting.
    Begun {
        began: Duration,
    },
    /// Written. What will be learned, and when.
    Sent {
        outcome: Outcome,
        at: Timestamp,
    },
    /// Over.
    Over {
        outcome: Outcome,
    },
}

/// A result to be written.
pub(crate) struct Result {
    pub(crate) finished: Finished,
    /// Whether a slot is held for it.
    pub(crate) has_slot: bool,
    pub(crate) ready_since: Timestamp,
}

/// Attempts a dispatcher makes at once.
const SLOTS: usize = 3;
/// Messages it is given without having acknowledged others.
pub(crate) const PREFETCH: usize = 4;

impl Dispatcher {
    /// Free slots.
    pub(crate) fn room(&self) -> usize {
        let taken = self.attempts.len() + self.results.iter().filter(|result| result.has_slot).count();
        SLOTS.saturating_sub(taken)
    }

    /// Whether the database's clock was set since this one was aligned with it.
    pub(crate) fn is_misaligned(&self) -> bool {
        Duration::from_micros(self.clock_error.unsigned_abs()) > CLOCK_ERROR
    }

    /// Since when the step that has waited longest could be made, or from when on the next one can.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        let attempts = self.attempts.iter().map(|attempt| match attempt.state {
            State::Sent { at, .. } => at,
            _ => attempt.ready_since,
        });
        let claim = self.claim.iter().map(|claim| claim.ready_since);
        let results = self.results.iter().map(|result| result.ready_since);
        attempts.chain(claim).chain(results).min()
    }
}

//! Progress of a dispatcher, for readiness checks.

use std::time::Instant;

use engine::LocalFailure;
use tokio::sync::watch;

/// The progress that a dispatcher publishes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Progress(watch::Sender<State>);

#[derive(Clone, Debug)]
struct State {
    claimed_at: Instant,
    unrecorded_since: Option<Instant>,
    troubles: Vec<LocalFailure>,
}

impl Default for Progress {
    fn default() -> Progress {
        let state = State { claimed_at: Instant::now(), unrecorded_since: None, troubles: Vec::new() };
        Progress(watch::Sender::new(state))
    }
}

impl Progress {
    pub(crate) fn claimed(&self) {
        self.0.send_modify(|state| state.claimed_at = Instant::now());
    }

    pub(crate) fn update(&self, unrecorded_since: Option<Instant>, troubles: Vec<LocalFailure>) {
        self.0.send_modify(|state| (state.unrecorded_since, state.troubles) = (unrecorded_since, troubles));
    }

    /// Returns when the dispatcher last claimed attempts, or found none to claim.
    pub fn claimed_at(&self) -> Instant {
        self.0.borrow().claimed_at
    }

    /// Returns since when the dispatcher has had results that it could not record.
    pub fn unrecorded_since(&self) -> Option<Instant> {
        self.0.borrow().unrecorded_since
    }

    /// Returns the local failures that currently keep attempts from being sent.
    pub fn troubles(&self) -> Vec<LocalFailure> {
        self.0.borrow().troubles.clone()
    }
}

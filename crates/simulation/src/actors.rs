//! State of the apis, the broker, and the destinations that polls have missed.

use std::collections::BTreeMap;

use contracts::{Destination, Job};

#[derive(Default)]
pub(crate) struct Api {
    /// Unpublished doorbells.
    pub(crate) buffer: Vec<Job>,
}

/// Maximum number of unacknowledged messages of a dispatcher.
pub(crate) const PREFETCH: usize = 4;

#[derive(Default)]
pub(crate) struct Broker {
    pub(crate) queue: Vec<Message>,
    /// The last token given out.
    pub(crate) given_out: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Identifies one delivery of the message to a dispatcher.
    pub(crate) token: u64,
    pub(crate) job: Job,
}

/// Number of consecutive polls in which each dispatcher passed over a destination that it could have served.
#[derive(Default)]
pub(crate) struct MissedPolls(pub(crate) BTreeMap<(usize, Destination), usize>);

impl MissedPolls {
    /// Forgets the counts of a restarted dispatcher.
    pub(crate) fn forget(&mut self, d: usize) {
        self.0.retain(|(dispatcher, _), _| *dispatcher != d);
    }
}

//! The publisher, the same for both kinds of queue.

use std::sync::Arc;

use contracts::Job;
use tokio::sync::{mpsc, watch};

use super::consumer::Message;

/// The most calls to [`Publisher::ring_all`] buffered for the broker, each with up to [`Job::MOST`] jobs: 16
/// MiB at worst. A larger buffer is useless, because a doorbell is worth sending for a few seconds only.
const BUFFER: usize = 1024;

/// Publishes doorbells. Cheap to clone; never waits and never fails.
#[derive(Clone, Debug)]
pub struct Publisher {
    doorbells: mpsc::Sender<Vec<Message>>,
    stats: watch::Sender<PublisherStats>,
    /// The broker's queue; `None` in process.
    queue: Option<Arc<str>>,
}

/// The outcomes of the doorbells rung so far. Doorbells in no count are still in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Whether the broker is connected. Always true in process.
    pub connected: bool,
    /// The number of connections to the broker so far.
    pub connects: u64,
    /// Doorbells confirmed by the broker, or put into the in-process queue.
    pub published: u64,
    /// Doorbells never sent: the buffer was full, the broker blocked publishers, or they were too old.
    pub dropped: u64,
    /// Doorbells sent but refused, returned, not confirmed in time, or lost with the connection.
    pub refused: u64,
}

impl Publisher {
    pub(crate) fn in_process(doorbells: mpsc::Sender<Vec<Message>>) -> Publisher {
        let stats = PublisherStats { connected: true, ..PublisherStats::default() };
        Publisher { doorbells, stats: watch::Sender::new(stats), queue: None }
    }

    /// Returns a publisher with a small buffer for `queue`, and the two ends for the broker's task.
    pub(crate) fn buffered(
        queue: &str,
    ) -> (Publisher, mpsc::Receiver<Vec<Message>>, watch::Sender<PublisherStats>) {
        let (doorbells, waiting) = mpsc::channel(BUFFER);
        let stats = watch::Sender::default();
        (Publisher { doorbells, stats: stats.clone(), queue: Some(queue.into()) }, waiting, stats)
    }

    /// Rings for a job. If the buffer is full, the doorbell is dropped and counted.
    pub fn ring(&self, job: Job) {
        self.ring_all(vec![job]);
    }

    /// Rings for jobs that were accepted together.
    pub fn ring_all(&self, jobs: Vec<Job>) {
        let count = jobs.len() as u64;
        match self.doorbells.try_send(jobs.into_iter().map(Message::rung).collect()) {
            Ok(()) if self.queue.is_none() => self.stats.send_modify(|stats| stats.published += count),
            Ok(()) => {}
            Err(_) => self.stats.send_modify(|stats| stats.dropped += count),
        }
    }

    /// Returns the name of the broker's queue; `None` in process.
    pub fn queue(&self) -> Option<&str> {
        self.queue.as_deref()
    }

    /// Returns the statistics of all clones together.
    pub fn stats(&self) -> PublisherStats {
        *self.stats.borrow()
    }

    /// Returns a receiver of the statistics.
    pub fn watch(&self) -> watch::Receiver<PublisherStats> {
        self.stats.subscribe()
    }

    /// Waits until no doorbells are accepted any more: the publisher has shut down, and earlier doorbells are
    /// confirmed or given up. In process, it waits until the consumer is dropped.
    pub async fn closed(&self) {
        self.doorbells.closed().await;
    }
}

//! The ringing end, the same for both queues.

use contracts::Job;
use tokio::sync::{mpsc, watch};

use crate::Message;

/// How often it may be rung while doorbells wait for the broker, each time for up to [`Job::MOST`] jobs: 16 MiB at
/// worst. More would not help: a doorbell is worth something for seconds only.
const BUFFER: usize = 1024;

/// Rings doorbells. Cheap to clone; never waits, never fails.
#[derive(Clone, Debug)]
pub struct Publisher {
    doorbells: mpsc::Sender<Vec<Message>>,
    stats: watch::Sender<PublisherStats>,
    in_process: bool,
}

/// What became of the doorbells rung so far. Those in none of the counts are still under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Whether a doorbell rung now has somewhere to go.
    pub connected: bool,
    /// How often it has connected to the broker.
    pub connects: u64,
    /// Confirmed by the broker, or put into the in-process queue.
    pub published: u64,
    /// Never sent: the buffer was full, the broker asked publishers to stop, or it was too late for them.
    pub dropped: u64,
    /// Sent, but refused, returned, not confirmed in time, or lost with the connection.
    pub refused: u64,
}

impl Publisher {
    pub(crate) fn in_process(doorbells: mpsc::Sender<Vec<Message>>) -> Publisher {
        let stats = PublisherStats { connected: true, ..PublisherStats::default() };
        Publisher { doorbells, stats: watch::Sender::new(stats), in_process: true }
    }

    /// A publisher whose doorbells wait in a small buffer, and the two ends a broker's task needs.
    pub(crate) fn buffered() -> (Publisher, mpsc::Receiver<Vec<Message>>, watch::Sender<PublisherStats>) {
        let (doorbells, waiting) = mpsc::channel(BUFFER);
        let stats = watch::Sender::default();
        (Publisher { doorbells, stats: stats.clone(), in_process: false }, waiting, stats)
    }

    /// Rings for a job. The doorbell is dropped, and counted, when the buffer is full.
    pub fn ring(&self, job: Job) {
        self.ring_all(vec![job]);
    }

    /// Rings once for jobs that were accepted together.
    pub fn ring_all(&self, jobs: Vec<Job>) {
        let count = jobs.len() as u64;
        match self.doorbells.try_send(jobs.into_iter().map(Message::rung).collect()) {
            Ok(()) if self.in_process => self.stats.send_modify(|stats| stats.published += count),
            Ok(()) => {}
            Err(_) => self.stats.send_modify(|stats| stats.dropped += count),
        }
    }

    /// The figures of all clones together.
    pub fn stats(&self) -> PublisherStats {
        *self.stats.borrow()
    }

    /// The same figures, to wait on.
    pub fn watch(&self) -> watch::Receiver<PublisherStats> {
        self.stats.subscribe()
    }

    /// Waits until nothing takes doorbells any more: the publisher has shut down, and what was rung before is
    /// confirmed or given up. In process: until the consumer is dropped.
    pub async fn closed(&self) {
        self.doorbells.closed().await;
    }
}

//! The hearing end, the same for both queues.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use contracts::Job;
use futures_util::FutureExt;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Hears doorbells.
#[derive(Debug)]
pub struct Consumer {
    messages: mpsc::Receiver<Vec<Message>>,
    /// The rest of what came together.
    here: VecDeque<Message>,
    stats: watch::Receiver<ConsumerStats>,
    paused: watch::Sender<bool>,
    shutdown: CancellationToken,
}

/// What a broker's task needs of its consumer.
pub(crate) struct Forwarding {
    pub(crate) messages: mpsc::Sender<Vec<Message>>,
    pub(crate) stats: watch::Sender<ConsumerStats>,
    pub(crate) paused: watch::Receiver<bool>,
}

/// How a consumer fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerStats {
    /// Whether doorbells can be heard now.
    pub connected: bool,
    /// When the consuming channel last gave a sign of life. In process it needs none.
    pub alive_at: Option<Instant>,
    /// Messages in the parked queue, as last heard: given out too often, for a person to look at.
    pub parked: u32,
    /// How often it has connected to the broker.
    pub connects: u64,
    /// Messages that were no job this version knows. They are acknowledged and forgotten.
    pub undecodable: u64,
}

/// A doorbell heard. Dropped without [`Message::ack`], a broker gives it out again once the connection ends, together with
/// all that came in one message.
#[derive(Debug)]
pub struct Message {
    /// What is wanted.
    pub job: Job,
    /// When it was rung or heard in this process.
    pub(crate) since: Instant,
    shared: Option<Arc<Shared>>,
}

/// Doorbells that came in one message of the broker's.
#[derive(Debug)]
struct Shared {
    acker: Acker,
    /// How many are not acknowledged.
    left: AtomicUsize,
}

impl Consumer {
    pub(crate) fn in_process(messages: mpsc::Receiver<Vec<Message>>) -> Consumer {
        let stats = ConsumerStats { connected: true, ..ConsumerStats::default() };
        let (paused, _) = watch::channel(false);
        let (stats, shutdown) = (watch::channel(stats).1, CancellationToken::new());
        Consumer { messages, here: VecDeque::new(), stats, paused, shutdown }
    }

    /// A consumer of what a broker's task forwards, and the ends that task needs.
    pub(crate) fn forwarded(prefetch: u16, shutdown: CancellationToken) -> (Consumer, Forwarding) {
        // The broker's prefetch is the bound; with room for all of it the task never waits here.
        let (forward, messages) = mpsc::channel(usize::from(prefetch));
        let (stats, watched) = watch::channel(ConsumerStats::default());
        let (pause, paused) = watch::channel(false);
        let consumer = Consumer { messages, here: VecDeque::new(), stats: watched, paused: pause, shutdown };
        (consumer, Forwarding { messages: forward, stats, paused })
    }

    /// Stops listening until [`Consumer::resume`]. What was heard and not acknowledged is forgotten, the rest of the queue
    /// left to others.
    pub fn pause(&mut self) {
        if !self.paused.send_replace(true) {
            // The relay serves them.
            self.here.clear();
            while self.messages.try_recv().is_ok() {}
        }
    }

    /// Listens again.
    pub fn resume(&mut self) {
        self.paused.send_if_modified(|paused| std::mem::replace(paused, false));
    }

    /// The next message; none once the queue is shut down and its connection closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if self.here.is_empty() {
                self.here.extend(self.messages.recv().await?);
            }
            // What was prefetched before the shutdown goes back to the broker.
            match self.here.pop_front() {
                message @ Some(_) if !self.shutdown.is_cancelled() => return message,
                _ => self.here.clear(),
            }
        }
    }

    /// A message that is already here.
    pub fn try_next(&mut self) -> Option<Message> {
        if self.here.is_empty() {
            self.here.extend(self.messages.try_recv().ok()?);
        }
        self.here.pop_front().filter(|_| !self.shutdown.is_cancelled())
    }

    /// How it fares now.
    pub fn stats(&self) -> ConsumerStats {
        *self.stats.borrow()
    }

    /// The same, to wait on or to keep elsewhere.
    pub fn watch(&self) -> watch::Receiver<ConsumerStats> {
        self.stats.clone()
    }
}

impl Message {
    pub(crate) fn rung(job: Job) -> Message {
        Message { job, since: Instant::now(), shared: None }
    }

    /// Those of one message.
    pub(crate) fn heard(jobs: Vec<Job>, acker: Acker) -> Vec<Message> {
        let shared = Arc::new(Shared { acker, left: AtomicUsize::new(jobs.len()) });
        let since = Instant::now();
        jobs.into_iter().map(|job| Message { job, since, shared: Some(shared.clone()) }).collect()
    }

    /// Says that the doorbell needs no repeating: call it right after the claim commits. The last one of its message hands
    /// the acknowledgement to the connection and doesn't wait for it to be written. When the connection is gone the
    /// message comes again, which is harmless.
    pub fn ack(self) {
        if let Some(shared) = self.shared
            && shared.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            ack(&shared.acker);
        }
    }
}

/// Polled once, the future has queued the frame; the rest of it would wait until the frame is written.
pub(crate) fn ack(acker: &Acker) {
    if let Some(Ok(false) | Err(_)) = acker.ack(BasicAckOptions::default()).now_or_never() {
        debug!("message not acknowledged, its connection is gone; it will come again");
    }
}

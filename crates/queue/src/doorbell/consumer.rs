//! The consumer, the same for both kinds of queue.

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

/// Receives doorbells.
#[derive(Debug)]
pub struct Consumer {
    messages: mpsc::Receiver<Vec<Message>>,
    /// The rest of the last received batch.
    here: VecDeque<Message>,
    stats: watch::Receiver<ConsumerStats>,
    paused: watch::Sender<bool>,
    shutdown: CancellationToken,
}

/// The ends of a consumer's channels that the broker's task uses.
pub(crate) struct Forwarding {
    pub(crate) messages: mpsc::Sender<Vec<Message>>,
    pub(crate) stats: watch::Sender<ConsumerStats>,
    pub(crate) paused: watch::Receiver<bool>,
}

/// The state of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumerStats {
    /// Whether doorbells can be received now.
    pub connected: bool,
    /// When the consuming channel last answered a liveness check. Unused in process.
    pub alive_at: Option<Instant>,
    /// The last known number of messages in the parked queue: delivered too often, for an operator to
    /// inspect.
    pub parked: u32,
    /// The number of connections to the broker so far.
    pub connects: u64,
    /// The number of messages that this version could not decode. They are acknowledged and discarded.
    pub undecodable: u64,
}

/// A received doorbell. If it is dropped without [`Message::ack`], the broker redelivers it after the
/// connection ends, together with all doorbells of the same broker message.
#[derive(Debug)]
pub struct Message {
    /// The job.
    pub job: Job,
    /// When it was rung or received in this process.
    pub(crate) since: Instant,
    shared: Option<Arc<Shared>>,
}

/// The state shared by the doorbells of one broker message.
#[derive(Debug)]
struct Shared {
    acker: Acker,
    /// The number of doorbells not acknowledged yet.
    left: AtomicUsize,
}

impl Consumer {
    pub(crate) fn in_process(messages: mpsc::Receiver<Vec<Message>>) -> Consumer {
        let stats = ConsumerStats { connected: true, ..ConsumerStats::default() };
        let (paused, _) = watch::channel(false);
        let (stats, shutdown) = (watch::channel(stats).1, CancellationToken::new());
        Consumer { messages, here: VecDeque::new(), stats, paused, shutdown }
    }

    /// Returns a consumer of the messages that a broker's task forwards, and the ends for that task.
    pub(crate) fn forwarded(prefetch: u16, shutdown: CancellationToken) -> (Consumer, Forwarding) {
        // The broker's prefetch is the bound. With room for all of it, the task never waits here.
        let (forward, messages) = mpsc::channel(usize::from(prefetch));
        let (stats, watched) = watch::channel(ConsumerStats::default());
        let (pause, paused) = watch::channel(false);
        let consumer = Consumer { messages, here: VecDeque::new(), stats: watched, paused: pause, shutdown };
        (consumer, Forwarding { messages: forward, stats, paused })
    }

    /// Stops consuming until [`Consumer::resume`]. Unacknowledged messages are discarded, the rest of the
    /// queue is left to other consumers.
    pub fn pause(&mut self) {
        if !self.paused.send_replace(true) {
            // The relay serves their deliveries.
            self.here.clear();
            while self.messages.try_recv().is_ok() {}
        }
    }

    /// Resumes consuming.
    pub fn resume(&mut self) {
        self.paused.send_if_modified(|paused| std::mem::replace(paused, false));
    }

    /// Returns the next message, or `None` once the queue is shut down and its connection closed.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if self.here.is_empty() {
                self.here.extend(self.messages.recv().await?);
            }
            // Messages prefetched before the shutdown are returned to the broker.
            match self.here.pop_front() {
                message @ Some(_) if !self.shutdown.is_cancelled() => return message,
                _ => self.here.clear(),
            }
        }
    }

    /// Returns a message that has already arrived, if any.
    pub fn try_next(&mut self) -> Option<Message> {
        if self.here.is_empty() {
            self.here.extend(self.messages.try_recv().ok()?);
        }
        self.here.pop_front().filter(|_| !self.shutdown.is_cancelled())
    }

    /// Returns the current state.
    pub fn stats(&self) -> ConsumerStats {
        *self.stats.borrow()
    }

    /// Returns a receiver of the state.
    pub fn watch(&self) -> watch::Receiver<ConsumerStats> {
        self.stats.clone()
    }
}

impl Message {
    pub(crate) fn rung(job: Job) -> Message {
        Message { job, since: Instant::now(), shared: None }
    }

    /// Returns the doorbells of one broker message.
    pub(crate) fn heard(jobs: Vec<Job>, acker: Acker) -> Vec<Message> {
        let shared = Arc::new(Shared { acker, left: AtomicUsize::new(jobs.len()) });
        let since = Instant::now();
        jobs.into_iter().map(|job| Message { job, since, shared: Some(shared.clone()) }).collect()
    }

    /// Acknowledges the doorbell. Call it right after the claim commits. The last doorbell of a broker
    /// message queues the acknowledgement on the connection without waiting for the write. If the connection
    /// is lost the message is redelivered, which is harmless.
    pub fn ack(self) {
        if let Some(shared) = self.shared
            && shared.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            ack(&shared.acker);
        }
    }
}

/// Acknowledges a broker message without waiting for the write: the first poll of the future queues the
/// frame.
pub(crate) fn ack(acker: &Acker) {
    if let Some(Ok(false) | Err(_)) = acker.ack(BasicAckOptions::default()).now_or_never() {
        debug!("message not acknowledged: its connection is gone, it will be redelivered");
    }
}

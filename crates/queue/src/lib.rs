//! Doorbells: job messages that say "an attempt of this delivery is wanted", over RabbitMQ or in process.
//!
//! A doorbell is never the work. One that is dropped, refused, lost or repeated does no harm, because the
//! relay serves from the database whatever no doorbell announced. So ringing never waits and never fails, a
//! broker outage is no outage of the program, and nothing here is retried message by message.
//!
//! This is the only crate that knows lapin.

mod backoff;
mod broker;
mod consumer;
mod consuming;
mod publisher;
mod publishing;
mod session;

pub use broker::{Broker, BrokerError};
pub use consumer::{Consumer, ConsumerStats, Message};
pub use publisher::{Publisher, PublisherStats};
pub use session::{Depth, Lost};

use tokio_util::sync::CancellationToken;

/// A queue inside this process, for one process that does everything. It holds what was rung for `capacity` times, and
/// drops what exceeds that. It shuts down when its last publisher is dropped.
pub fn in_process(capacity: usize) -> (Publisher, Consumer) {
    let (doorbells, messages) = tokio::sync::mpsc::channel(capacity.max(1));
    (Publisher::in_process(doorbells), Consumer::in_process(messages))
}

impl Broker {
    /// Rings doorbells at this broker, from a task of its own that connects again for as long as it takes.
    /// After `shutdown` it still publishes what was rung before; [`Publisher::closed`] says when that is done.
    ///
    /// Must be called within a tokio runtime.
    pub fn publisher(&self, shutdown: CancellationToken) -> Publisher {
        let (publisher, doorbells, stats) = Publisher::buffered();
        tokio::spawn(publishing::run(self.clone(), doorbells, stats, shutdown));
        publisher
    }

    /// Hears doorbells from this broker, from a task of its own that connects again for as long as it takes.
    /// At most `prefetch` messages (at least one) are held without being acknowledged. After `shutdown`, or
    /// when the consumer is dropped, the connection is closed and unacknowledged messages go back at once.
    ///
    /// Must be called within a tokio runtime.
    pub fn consumer(&self, prefetch: u16, shutdown: CancellationToken) -> Consumer {
        // Zero would mean "without limit" to the broker.
        let prefetch = prefetch.max(1);
        let (consumer, forwarding) = Consumer::forwarded(prefetch, shutdown.clone());
        tokio::spawn(consuming::run(self.clone(), prefetch, forwarding, shutdown));
        consumer
    }

    /// How full the queues are. Declares them when they are not there.
    pub async fn depth(&self) -> Result<Depth, Lost> {
        let session = session::Session::open(self, "redial").await?;
        let depth = session.depth(self).await;
        session.close().await;
        depth
    }

    /// Deletes the queue and its parked queue with all that is in them: for queues made for one occasion, such
    /// as a load test. Doorbells lost this way are served by the relay.
    pub async fn delete_queues(&self) -> Result<(), Lost> {
        let session = session::Session::open(self, "redial").await?;
        let deleted = session.delete_queues(self).await;
        session.close().await;
        deleted
    }
}

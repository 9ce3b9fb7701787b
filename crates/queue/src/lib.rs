//! Doorbells: job messages that request an attempt of a delivery, over RabbitMQ or in process.
//!
//! Doorbells are hints. One that is dropped, refused, lost or repeated is harmless, because the relay finds
//! deliveries without a doorbell in the database. Therefore publishing never waits and never fails, a broker
//! outage does not stop the program, and single messages are never retried.
//!
//! This is the only crate that uses lapin.

mod broker;
mod doorbell;
mod rabbit;

pub use broker::{Broker, BrokerError};
pub use doorbell::consumer::{Consumer, ConsumerStats, Message};
pub use doorbell::publisher::{Publisher, PublisherStats};
pub use rabbit::inspect::{BrokerFacts, Publishing, QueueState, Refused};
pub use rabbit::session::{Depth, Lost};

use tokio_util::sync::CancellationToken;

use crate::broker::Node;
use crate::rabbit::session::Session;

/// Returns a queue inside this process, for a single process with all roles. It holds the doorbells of up to
/// `capacity` calls to [`Publisher::ring_all`] and drops the rest. It shuts down when its last publisher is
/// dropped.
pub fn in_process(capacity: usize) -> (Publisher, Consumer) {
    let (doorbells, messages) = tokio::sync::mpsc::channel(capacity.max(1));
    (Publisher::in_process(doorbells), Consumer::in_process(messages))
}

impl Broker {
    /// Returns a publisher to this broker. It runs in its own task, which reconnects without limit. After
    /// `shutdown` it still publishes the doorbells rung before. [`Publisher::closed`] waits for that.
    ///
    /// Must be called within a tokio runtime.
    pub fn publisher(&self, shutdown: CancellationToken) -> Publisher {
        let (publisher, doorbells, stats) = Publisher::buffered(self.queue());
        tokio::spawn(rabbit::publish::run(self.clone(), doorbells, stats, shutdown));
        publisher
    }

    /// Returns a consumer of this broker's doorbells. It runs in its own task, which reconnects without
    /// limit. It holds at most `prefetch` unacknowledged messages (at least one). After `shutdown`, or when
    /// the consumer is dropped, it closes the connection and unacknowledged messages are requeued at once.
    ///
    /// Must be called within a tokio runtime.
    pub fn consumer(&self, prefetch: u16, shutdown: CancellationToken) -> Consumer {
        // The broker treats zero as "unlimited".
        let prefetch = prefetch.max(1);
        let (consumer, forwarding) = Consumer::forwarded(prefetch, shutdown.clone());
        tokio::spawn(rabbit::consume::run(self.clone(), prefetch, forwarding, shutdown));
        consumer
    }

    /// Returns the depth of the queues. Declares them if they don't exist.
    pub async fn depth(&self) -> Result<Depth, Lost> {
        let (node, session) = self.session().await?;
        let depth = session.depth(&node).await;
        session.close().await;
        depth
    }

    /// Returns the product and version that the broker states before the login, such as `RabbitMQ 3.10.8`.
    /// `None`: it does not speak AMQP 0-9-1. Asks the nodes of a cluster in turn.
    pub async fn greeting(&self) -> Result<Option<String>, Lost> {
        rabbit::inspect::greeting(&self.next_node()).await
    }

    /// Returns the state of the broker and the queue, and the user's rights. Changes nothing. Asks the nodes of a
    /// cluster in turn.
    pub async fn inspect(&self) -> Result<BrokerFacts, Lost> {
        rabbit::inspect::inspect(&self.next_node()).await
    }

    /// Deletes the queue and its parked queue with their contents. Meant for temporary queues, such as those
    /// of a load test. The relay serves the deliveries of the deleted doorbells.
    pub async fn delete_queues(&self) -> Result<(), Lost> {
        let (node, session) = self.session().await?;
        let deleted = session.delete_queues(&node).await;
        session.close().await;
        deleted
    }

    /// Opens a session with any node. Returns the last error if none is available.
    async fn session(&self) -> Result<(Node, Session), Lost> {
        let mut node = self.next_node();
        let mut opened = Session::open(&node, "redial").await;
        for _ in 1..self.node_count() {
            if opened.is_err() {
                node = self.next_node();
                opened = Session::open(&node, "redial").await;
            }
        }
        Ok((node, opened?))
    }
}

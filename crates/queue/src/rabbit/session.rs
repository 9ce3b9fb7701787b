//! A session: one connection to the broker with one channel, and the queues declared on it.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::tcp::{AsyncTcpStream, TLSConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPScheme};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use thiserror::Error;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tracing::info;

use crate::broker::Node;

/// The timeout of a request to the broker.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a session ended.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum Lost {
    #[error("{0}")]
    Broker(#[from] lapin::Error),
    #[error("the broker did not answer in time")]
    Late(#[from] Elapsed),
    #[error("the consumer was cancelled; its queue may be gone")]
    Cancelled,
    #[error("messages are waiting, but the broker delivers none")]
    PassedOver,
    #[error("a message was returned; its queue may be gone")]
    Returned,
    #[error(
        "queue {queue} can neither be declared ({declared}) nor used as it is ({found}): give the user the right to \
         configure it, or make it, as a quorum queue"
    )]
    Unusable { queue: String, declared: lapin::Error, found: lapin::Error },
}

impl Lost {
    /// Returns whether only an operator can fix the cause.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self, Lost::Unusable { .. })
    }
}

/// An open session. Dropping it shuts down its socket at once; [`Session::close`] closes it cleanly.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) channel: Channel,
    /// Whether the queue for parked messages exists.
    has_parked: bool,
    _socket: Socket,
}

/// The depth of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages ready for delivery.
    pub waiting: u32,
    /// Consumers on all connections.
    pub consumers: u32,
    /// Messages in the parked queue.
    pub parked: u32,
}

impl Session {
    /// Connects and declares the queues. `name` is the connection's name at the broker.
    pub(crate) async fn open(node: &Node, name: &str) -> Result<Session, Lost> {
        let socket = Socket::default();
        // Connecting comes first and has its own timeout, so the socket is known when this one expires.
        timeout(2 * TIMEOUT, async {
            let connection = connect(node, name, &socket).await?;
            let mut channel = connection.create_channel().await?;
            let has_parked = match declare(&connection, &mut channel, &node.parked, parked_arguments()).await
            {
                // An operator has to create it. Nothing here depends on it.
                Err(Lost::Unusable { .. }) => false,
                declared => declared.map(|()| true)?,
            };
            declare(&connection, &mut channel, &node.queue, arguments(node)).await?;
            Ok(Session { connection, channel, has_parked, _socket: socket })
        })
        .await?
    }

    /// Deletes both queues with their contents.
    pub(crate) async fn delete_queues(&self, node: &Node) -> Result<(), Lost> {
        for queue in [&node.queue, &node.parked] {
            let delete = self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            timeout(TIMEOUT, delete).await??;
        }
        Ok(())
    }

    /// Queries the depth of the queues. A missing queue or a timeout means that the session is lost.
    pub(crate) async fn depth(&self, node: &Node) -> Result<Depth, Lost> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let ask = |queue: &str| self.channel.queue_declare(queue.into(), passive, FieldTable::default());
        let queue = timeout(TIMEOUT, ask(&node.queue)).await??;
        let parked = match self.has_parked {
            true => timeout(TIMEOUT, ask(&node.parked)).await??.message_count(),
            false => 0,
        };
        Ok(Depth { waiting: queue.message_count(), consumers: queue.consumer_count(), parked })
    }

    /// Closes the connection. Its unacknowledged messages are requeued at once.
    pub(crate) async fn close(self) {
        // Failures are ignored: the broker notices when the socket is shut down.
        let _ = timeout(TIMEOUT, self.connection.close(200, "OK".into())).await;
    }
}

/// The TCP connection under lapin's, shut down on drop. lapin's thread ends only with its socket. Without
/// this, each connection to a broker that accepts and never answers would leak a thread.
#[derive(Default)]
pub(super) struct Socket(Arc<OnceLock<TcpStream>>);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(socket) = self.0.get() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

pub(super) async fn connect(node: &Node, name: &str, socket: &Socket) -> lapin::Result<Connection> {
    let socket = socket.0.clone();
    // lapin's own recovery stays off (the default), because a recovered session looks like the old one.
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime()?;
    let connect = Connection::connector(
        node.uri.clone(),
        runtime,
        async move |uri, runtime| {
            let connect = async {
                let AMQPAuthority { host, port, .. } = &uri.authority;
                let addresses = runtime.to_socket_addrs((host.clone(), *port));
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    // A single doorbell must not wait for the acknowledgement of the previous packet.
                    plain.get_ref().set_nodelay(true)?;
                    let _ = socket.set(plain.get_ref().as_fd().try_clone_to_owned()?.into());
                }
                match uri.scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => stream.into_tls(host, TLSConfig::default()).await,
                }
            };
            Ok(timeout(TIMEOUT, connect).await.map_err(io::Error::from)??)
        },
        properties,
    );
    connect.await
}

/// Declares a queue. Publishers and consumers declare both queues on every connection, so their start order
/// does not matter and a deleted queue is created again. An existing queue that may not be declared, or that
/// has other arguments, is used as is.
async fn declare(
    connection: &Connection,
    channel: &mut Channel,
    queue: &str,
    arguments: FieldTable,
) -> Result<(), Lost> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let Err(declared) = channel.queue_declare(queue.into(), durable, arguments).await else { return Ok(()) };
    if !is_refusal(&declared) {
        return Err(declared.into());
    }
    // The broker has closed the channel, and closes the new one if the queue does not exist.
    *channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
        Ok(_) => {
            info!(queue, reason = %declared, "using the existing queue unchanged");
            Ok(())
        }
        Err(found) if is_refusal(&found) => {
            *channel = connection.create_channel().await?;
            Err(Lost::Unusable { queue: queue.to_owned(), declared, found })
        }
        Err(lost) => Err(lost.into()),
    }
}

/// Returns whether the broker refused the request: the user lacks the permission, the queue has other
/// arguments, or it does not exist.
fn is_refusal(error: &lapin::Error) -> bool {
    use AMQPSoftError::{ACCESSREFUSED, NOTFOUND, PRECONDITIONFAILED};
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(ACCESSREFUSED | PRECONDITIONFAILED | NOTFOUND))
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn parked_arguments() -> FieldTable {
    let mut parked = FieldTable::default();
    parked.insert("x-queue-type".into(), text("quorum"));
    parked
}

/// Returns the arguments of the queue. Those of an existing queue can't be changed, so a change here requires
/// a new [`Broker::DEFAULT_QUEUE`].
pub(super) fn arguments(node: &Node) -> FieldTable {
    let mut doorbells = FieldTable::default();
    doorbells.insert("x-queue-type".into(), text("quorum"));
    // The relay serves the deliveries of doorbells refused by a full queue: it reads the backlog from the
    // database.
    doorbells.insert("x-max-length".into(), AMQPValue::LongLongInt(10_000));
    doorbells.insert("x-overflow".into(), text("reject-publish"));
    // A message that ends every connection it is delivered to is parked, not redelivered forever.
    doorbells.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(20));
    doorbells.insert("x-dead-letter-exchange".into(), text(""));
    doorbells.insert("x-dead-letter-routing-key".into(), text(&node.parked));
    doorbells.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    doorbells
}

//! Inspects a broker without changing anything on it: no queue is declared, no message is written or taken.
//!
//! AMQP has no requests that only look up a right. So requests are made that the broker must refuse for their
//! arguments, after it has checked the right: nothing is done either way, and the reason of the refusal shows
//! whether the right was missing.

use std::future::pending;
use std::pin::pin;

use futures_util::{AsyncReadExt, AsyncWriteExt, Stream, StreamExt};
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError, parse_class};
use lapin::tcp::AMQPUriTcpExt;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ErrorKind, Event};
use tokio::time::timeout;

use crate::broker::Node;
use crate::rabbit::session::{Lost, Socket, TIMEOUT, arguments, connect};

/// What an inspection finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerFacts {
    /// The queue's state.
    pub queue: QueueState,
    /// Messages in the parked queue; `None` if it does not exist.
    pub parked: Option<u32>,
    /// Whether the user may declare the queue.
    pub may_configure: bool,
    /// Whether the user may consume from the queue.
    pub may_read: bool,
    /// Whether messages can be published.
    pub publishing: Publishing,
}

/// The state of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// It does not exist.
    Missing,
    /// It exists; its arguments can't be compared without the right to declare it.
    Unknown,
    /// It exists, as this program declares it.
    AsDeclared,
    /// It exists with other arguments. Contains the difference in the broker's words.
    Different(String),
    /// It can't be used. Contains the reason in the broker's words.
    Unusable(String),
}

/// Whether messages can be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// The broker accepts them.
    Accepted,
    /// The user may not write to the default exchange.
    Refused,
    /// The broker has blocked all publishers. Contains the reason in its words, such as `low on memory`.
    Blocked(String),
}

/// What a broker refused while connecting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The user's name or password.
    Credentials,
    /// The virtual host: it does not exist, or the user has no access to it.
    VirtualHost,
}

impl Lost {
    /// Returns what the broker refused, if this is the error of connecting to it.
    pub fn refused(&self) -> Option<Refused> {
        let Lost::Broker(error) = self else { return None };
        let ErrorKind::ProtocolError(error) = error.kind() else { return None };
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Some(Refused::Credentials),
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => Some(Refused::VirtualHost),
            _ => None,
        }
    }
}

/// The size of a greeting's frame, at most. RabbitMQ's is about 500 bytes.
const MAX_GREETING: usize = 64 * 1024;

/// Returns the product and version that the broker states before the login, such as `RabbitMQ 3.10.8`. `None`:
/// it is no broker that speaks AMQP 0-9-1.
pub(crate) async fn greeting(node: &Node) -> Result<Option<String>, Lost> {
    let read = async {
        let mut stream = node.uri.connect_async(&lapin::runtime::default_runtime()?).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        // Type, channel and size of a frame (AMQP 0-9-1, section 4.2.3).
        let mut header = [0; 7];
        stream.read_exact(&mut header).await?;
        let [1, 0, 0, size @ ..] = header else { return Ok(None) };
        let size = u32::from_be_bytes(size) as usize;
        if size > MAX_GREETING {
            return Ok(None);
        }
        let mut method = vec![0; size];
        stream.read_exact(&mut method).await?;
        lapin::Result::Ok(stated(&method))
    };
    Ok(timeout(TIMEOUT, read).await??)
}

fn stated(method: &[u8]) -> Option<String> {
    let Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) = parse_class(method) else { return None };
    let text = |key: &str| match start.server_properties.inner().get(key) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => "?".to_owned(),
    };
    Some(format!("{} {}", text("product"), text("version")))
}

/// Inspects the broker with a connection of its own.
pub(crate) async fn inspect(node: &Node) -> Result<BrokerFacts, Lost> {
    let socket = Socket::default();
    timeout(2 * TIMEOUT, async {
        let connection = connect(node, "redial doctor", &socket).await?;
        let events = connection.events_listener();
        let (queue, may_configure) = queue_state(&connection, node).await?;
        let facts = BrokerFacts {
            queue,
            may_configure,
            may_read: may_read(&connection, &node.queue).await?,
            parked: depth(&connection, &node.parked).await?.ok(),
            // Last, because a broker that blocks publishers answers nothing any more.
            publishing: publishing(&connection, events).await?,
        };
        if !matches!(facts.publishing, Publishing::Blocked(_)) {
            connection.close(200, "OK".into()).await?;
        }
        Ok(facts)
    })
    .await?
}

/// Makes a request on a channel of its own, because the broker closes the channel of a request that it
/// refuses. The inner error is a refusal.
async fn ask<T>(
    connection: &Connection,
    request: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
) -> Result<Result<T, AMQPError>, Lost> {
    let channel = connection.create_channel().await?;
    let error = match request(&channel).await {
        Ok(answer) => {
            channel.close(200, "OK".into()).await?;
            return Ok(Ok(answer));
        }
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::ProtocolError(refusal) if matches!(refusal.kind(), AMQPErrorKind::Soft(_)) => {
            Ok(Err(refusal.clone()))
        }
        _ => Err(error.into()),
    }
}

fn is(refusal: &AMQPError, kind: AMQPSoftError) -> bool {
    *refusal.kind() == AMQPErrorKind::Soft(kind)
}

/// Returns whether a request that must be refused was refused for another reason than a missing right.
fn has_right<T>(answer: Result<T, AMQPError>) -> bool {
    !answer.is_err_and(|refusal| is(&refusal, AMQPSoftError::ACCESSREFUSED))
}

/// Returns the number of messages in a queue, or why it can't be used.
async fn depth(connection: &Connection, queue: &str) -> Result<Result<u32, AMQPError>, Lost> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    ask(connection, async |channel| {
        let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    })
    .await
}

/// Returns the queue's state, and whether the user may declare it.
async fn queue_state(connection: &Connection, node: &Node) -> Result<(QueueState, bool), Lost> {
    let found = depth(connection, &node.queue).await?;
    let mut arguments = arguments(node);
    if found.is_err() {
        // Refused for its value, so a missing queue is not made.
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(-1));
    }
    // An existing queue is only compared with its declaration.
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = ask(connection, async |channel| {
        channel.queue_declare(node.queue.as_str().into(), durable, arguments).await.map(drop)
    })
    .await?;
    let state = match (&found, &declared) {
        (Err(missing), _) if is(missing, AMQPSoftError::NOTFOUND) => QueueState::Missing,
        (Err(refusal), _) => QueueState::Unusable(refusal.get_message().to_string()),
        (Ok(_), Ok(())) => QueueState::AsDeclared,
        (Ok(_), Err(refusal)) if is(refusal, AMQPSoftError::ACCESSREFUSED) => QueueState::Unknown,
        (Ok(_), Err(refusal)) => QueueState::Different(refusal.get_message().to_string()),
    };
    Ok((state, has_right(declared)))
}

/// Returns whether the user may consume from the queue.
async fn may_read(connection: &Connection, queue: &str) -> Result<bool, Lost> {
    let mut arguments = FieldTable::default();
    // Refused for its type, so no message is delivered.
    arguments.insert("x-priority".into(), AMQPValue::LongString("none".into()));
    let consumed = ask(connection, async |channel| {
        let consume =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), arguments);
        consume.await.map(drop)
    });
    Ok(has_right(consumed.await?))
}

/// Returns whether messages can be published. The message that is published goes to a queue that does not
/// exist, so the broker returns it.
async fn publishing(connection: &Connection, events: impl Stream<Item = Event>) -> Result<Publishing, Lost> {
    let nowhere = format!("redial.doctor.{:032x}", rand::random::<u128>());
    let published = ask(connection, async |channel| {
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default();
        channel.basic_publish("".into(), nowhere.into(), options, b"", properties).await?.await.map(drop)
    });
    let blocked = async {
        let mut events = pin!(events);
        loop {
            match events.next().await {
                Some(Event::ConnectionBlocked(reason)) => break reason,
                Some(_) => {}
                None => pending().await,
            }
        }
    };
    tokio::select! {
        published = timeout(TIMEOUT, published) => {
            Ok(if has_right(published??) { Publishing::Accepted } else { Publishing::Refused })
        }
        reason = blocked => Ok(Publishing::Blocked(reason)),
    }
}

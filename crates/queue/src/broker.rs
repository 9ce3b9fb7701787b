//! The broker's address and the queue's name.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapin::uri::AMQPUri;
use thiserror::Error;
use url::{Host, Url};

/// The AMQP heartbeat in seconds. A peer is considered dead after two without a frame. With the broker's
/// default of 60, a dispatcher could miss doorbells for two minutes.
const HEARTBEAT: u16 = 10;

/// A RabbitMQ broker, one node or a cluster, and the queue on it. `Display` and `Debug` omit the credentials.
/// Clones take turns in using the nodes.
#[derive(Clone)]
pub struct Broker {
    nodes: Arc<[Node]>,
    /// Number of the next node to connect to, modulo their count.
    next: Arc<AtomicUsize>,
}

/// A node of the broker, and the queue.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) uri: AMQPUri,
    pub(crate) queue: String,
    pub(crate) parked: String,
}

/// Why a broker's configuration is invalid.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BrokerError {
    #[error("the broker's url is not valid: {0}")]
    Url(String),
    #[error("the broker's url must begin with amqp:// or amqps://, not {0}:")]
    Scheme(String),
    #[error("the broker's url names no host")]
    Host,
    #[error(
        "the broker's url ends in an empty virtual host; leave out the last slash, or write /%2f or /name"
    )]
    VirtualHost,
    #[error("the broker's url takes no parameters; leave out the question mark and what follows")]
    Parameters,
    #[error("the broker's queue must have a name of 1 to 240 bytes that does not begin with \"amq.\"")]
    Queue,
}

impl Broker {
    /// The default queue. Its name has a version, because the arguments of an existing queue can't be
    /// changed.
    pub const DEFAULT_QUEUE: &str = "redial.deliveries.v1";

    /// Parses a broker's URL, `amqp://user:password@host:5672/vhost` or `amqps://…`, and checks the queue's
    /// name. A cluster has several hosts, separated by commas: `amqp://user:password@host1:5672,host2:5672`.
    ///
    /// Messages delivered too often are parked: those of `redial.deliveries.v1` in `redial.parked.v1`, those
    /// of any other queue `NAME` in `NAME.parked`.
    pub fn parse(url: &str, queue: &str) -> Result<Broker, BrokerError> {
        if !(1..=240).contains(&queue.len()) || queue.starts_with("amq.") {
            return Err(BrokerError::Queue);
        }
        let parked = match queue {
            Broker::DEFAULT_QUEUE => "redial.parked.v1".to_owned(),
            other => format!("{other}.parked"),
        };
        let node = |uri| Node { uri, queue: queue.to_owned(), parked: parked.clone() };
        let nodes = with_each_host(url).into_iter().map(|url| parse_node(&url).map(node));
        // Programs that start together begin with different nodes.
        let next = Arc::new(AtomicUsize::new(rand::random::<u16>().into()));
        Ok(Broker { nodes: nodes.collect::<Result<_, _>>()?, next })
    }

    /// Returns the nodes in turn.
    pub(crate) fn next_node(&self) -> Node {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.nodes[next % self.nodes.len()].clone()
    }

    /// Returns the queue's name, the same on all nodes.
    pub(crate) fn queue(&self) -> &str {
        &self.nodes[0].queue
    }

    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }
}

/// Returns a URL for each host of a URL that may have several.
fn with_each_host(url: &str) -> Vec<String> {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find(['/', '?', '#']).map_or(url.len(), |at| begin + at);
    let hosts = url[begin..end].rfind('@').map_or(begin, |at| begin + at + 1);
    url[hosts..end].split(',').map(|host| format!("{}{host}{}", &url[..hosts], &url[end..])).collect()
}

fn parse_node(url: &str) -> Result<AMQPUri, BrokerError> {
    let url = Url::parse(url).map_err(|error| BrokerError::Url(error.to_string()))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(BrokerError::Scheme(url.scheme().to_owned()));
    }
    let host = url.host().filter(|host| *host != Host::Domain("")).ok_or(BrokerError::Host)?;
    if url.path() == "/" {
        return Err(BrokerError::VirtualHost);
    }
    if url.query().is_some() {
        return Err(BrokerError::Parameters);
    }
    let mut uri: AMQPUri = url.as_str().parse().map_err(BrokerError::Url)?;
    // lapin's parser finds no host in the brackets of an IPv6 address and falls back to localhost.
    if let Host::Ipv6(address) = host {
        uri.authority.host = address.to_string();
    }
    uri.query.heartbeat = Some(HEARTBEAT);
    Ok(uri)
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, node) in self.nodes.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{node}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({self})")
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        write!(f, "{scheme}://{}:{} vhost {vhost:?} queue {}", authority.host, authority.port, self.queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_shown_without_credentials() {
        let broker = Broker::parse("amqps://someone:secret@[::1]/tenant", Broker::DEFAULT_QUEUE).unwrap();
        assert_eq!(broker.to_string(), "amqps://::1:5671 vhost \"tenant\" queue redial.deliveries.v1");
        assert_eq!(format!("{broker:?}"), format!("Broker({broker})"));
        assert_eq!(broker.next_node().uri.authority.userinfo.password, "secret");
    }

    #[test]
    fn several_hosts_are_nodes_that_take_turns() {
        let url = "amqp://someone:sec,ret@mq1,mq2:5673,[::1]:5674/tenant";
        let broker = Broker::parse(url, "mine").unwrap();
        let turn =
            |broker: Broker| -> Vec<String> { (0..3).map(|_| broker.next_node().to_string()).collect() };
        let mut turns = turn(broker.clone());
        let again = turn(broker.clone());
        assert_eq!(turns, again);
        turns.sort();
        let node = |address: &str| format!("amqp://{address} vhost \"tenant\" queue mine");
        assert_eq!(turns, ["::1:5674", "mq1:5672", "mq2:5673"].map(node));
        assert_eq!(broker.next_node().uri.authority.userinfo.password, "sec,ret");
    }

    #[test]
    fn parked_messages_have_a_queue_of_their_own() {
        let parked = |queue| Broker::parse("amqp://localhost", queue).unwrap().next_node().parked;
        assert_eq!(parked("redial.deliveries.v1"), "redial.parked.v1");
        assert_eq!(parked("mine"), "mine.parked");
    }

    #[test]
    fn an_invalid_broker_is_described_without_its_credentials() {
        let refused = |url, queue| Broker::parse(url, queue).unwrap_err().to_string();
        for (url, word) in [
            ("http://u:secret@host", "amqps://, not http:"),
            ("u:secret@host", "amqps://, not u:"),
            ("amqp://u:secret@host:port", "not valid"),
            ("amqp:secret", "names no host"),
            ("amqp://", "names no host"),
            ("amqp://u:secret@mq1,,mq2", "empty host"),
            ("amqp://u:secret@mq1,mq2:port", "not valid"),
            ("amqp://u:secret@mq1,mq2/", "empty virtual host"),
            ("amqp://u:secret@host/", "empty virtual host"),
            ("amqp://u:secret@host?verify=verify_none", "no parameters"),
            ("amqp://u:%ff@host", "not valid"),
        ] {
            let message = refused(url, "q");
            assert!(message.contains(word) && !message.contains("secret"), "{url}: {message}");
        }
        for queue in ["", "amq.mine", &"q".repeat(241)] {
            assert!(refused("amqp://host", queue).contains("name of 1 to 240 bytes"));
        }
    }
}

//! The broker's address and the queue's name.

use std::fmt;

use lapin::uri::AMQPUri;
use thiserror::Error;
use url::{Host, Url};

/// The AMQP heartbeat in seconds. A peer is considered dead after two without a frame. With the broker's
/// default of 60, a dispatcher could miss doorbells for two minutes.
const HEARTBEAT: u16 = 10;

/// A RabbitMQ broker and the queue on it. `Display` and `Debug` omit the credentials.
#[derive(Clone)]
pub struct Broker {
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
    /// name.
    ///
    /// Messages delivered too often are parked: those of `redial.deliveries.v1` in `redial.parked.v1`, those
    /// of any other queue `NAME` in `NAME.parked`.
    pub fn parse(url: &str, queue: &str) -> Result<Broker, BrokerError> {
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
        if !(1..=240).contains(&queue.len()) || queue.starts_with("amq.") {
            return Err(BrokerError::Queue);
        }
        let mut uri: AMQPUri = url.as_str().parse().map_err(BrokerError::Url)?;
        // lapin's parser finds no host in the brackets of an IPv6 address and falls back to localhost.
        if let Host::Ipv6(address) = host {
            uri.authority.host = address.to_string();
        }
        uri.query.heartbeat = Some(HEARTBEAT);
        let parked = match queue {
            Broker::DEFAULT_QUEUE => "redial.parked.v1".to_owned(),
            other => format!("{other}.parked"),
        };
        Ok(Broker { uri, queue: queue.to_owned(), parked })
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        write!(f, "{scheme}://{}:{} vhost {vhost:?} queue {}", authority.host, authority.port, self.queue)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({self})")
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
        assert_eq!(broker.uri.authority.userinfo.password, "secret");
    }

    #[test]
    fn parked_messages_have_a_queue_of_their_own() {
        let parked = |queue| Broker::parse("amqp://localhost", queue).unwrap().parked;
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

//! A separate queue for each test, and waits without sleeping.

use std::time::Duration;

use contracts::{Destination, Job};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use queue::{Broker, Consumer, Message, Publisher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) fn amqp_url() -> String {
    std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

/// Waits for an expected event with a generous timeout.
pub(crate) async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), happens).await.expect("the event happens within 30 seconds")
}

pub(crate) async fn until<S>(mut stats: watch::Receiver<S>, holds: impl FnMut(&S) -> bool) {
    soon(stats.wait_for(holds)).await.expect("the stats have a sender");
}

pub(crate) async fn heard(consumer: &mut Consumer) -> Message {
    soon(consumer.next()).await.expect("a message")
}

pub(crate) fn job() -> Job {
    let id = |id: Uuid| id.to_string().parse().expect("an id");
    Job {
        delivery_id: id(Uuid::new_v4()),
        attempt: 1,
        destination: Destination::from(1),
        payload_size: None,
        org_id: Uuid::new_v4().to_string().parse().expect("an id"),
        request_id: "req-1".to_owned(),
        traceparent: None,
    }
}

/// A queue of one test, deleted on drop. `channel` accesses the broker without the crate under test.
pub(crate) struct Rabbit {
    pub(crate) queue: String,
    pub(crate) channel: Channel,
    pub(crate) shutdown: CancellationToken,
    _connection: Connection,
}

impl Rabbit {
    pub(crate) async fn new() -> Rabbit {
        let connection = connect().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let queue = format!("test.{}", Uuid::new_v4());
        Rabbit { queue, channel, shutdown: CancellationToken::new(), _connection: connection }
    }

    pub(crate) fn broker(&self) -> Broker {
        Broker::parse(&amqp_url(), &self.queue).unwrap()
    }

    /// Returns a connected publisher, which has declared the queues.
    pub(crate) async fn publisher(&self) -> Publisher {
        let publisher = self.broker().publisher(self.shutdown.clone());
        until(publisher.watch(), |stats| stats.connected).await;
        publisher
    }

    /// Returns a connected consumer.
    pub(crate) async fn consumer(&self, prefetch: u16) -> Consumer {
        let consumer = self.broker().consumer(prefetch, self.shutdown.clone());
        until(consumer.watch(), |stats| stats.connected).await;
        consumer
    }

    /// Puts jobs into the queue, each as a separate message.
    pub(crate) async fn put_each(&self, jobs: &[Job]) {
        for job in jobs {
            self.put(&Job::encode(std::slice::from_ref(job))).await;
        }
    }

    /// Sends a message to the broker. Returns its confirm, to be awaited.
    pub(crate) async fn publish(&self, body: &[u8]) -> PublisherConfirm {
        self.publish_to(&self.queue, body).await
    }

    pub(crate) async fn publish_to(&self, queue: &str, body: &[u8]) -> PublisherConfirm {
        let (exchange, queue, options) = ("".into(), queue.into(), BasicPublishOptions::default());
        self.channel.basic_publish(exchange, queue, options, body, BasicProperties::default()).await.unwrap()
    }

    /// Publishes a message and waits for its confirm.
    pub(crate) async fn put(&self, body: &[u8]) {
        assert_eq!(self.publish(body).await.await.unwrap(), Confirmation::Ack(None));
    }

    /// Returns the number of messages ready for delivery, without unacknowledged ones.
    pub(crate) async fn waiting(&self) -> u32 {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.queue.as_str().into();
        self.channel.queue_declare(queue, passive, FieldTable::default()).await.unwrap().message_count()
    }

    pub(crate) async fn delete(&self) {
        self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let queues = [self.queue.clone(), format!("{}.parked", self.queue)];
        let delete = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let connection = connect().await;
                let channel = connection.create_channel().await.unwrap();
                for queue in queues {
                    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
                }
                connection.close(200, "OK".into()).await.unwrap();
            });
        };
        // A runtime can't be entered from a thread of another runtime.
        std::thread::spawn(delete).join().unwrap();
    }
}

pub(crate) async fn connect() -> Connection {
    let connected = Connection::connect(&amqp_url(), ConnectionProperties::default()).await;
    connected.expect("RabbitMQ is running; set AMQP_URL if it is not local")
}

/// A TCP proxy to the broker whose connections can be cut.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    cut: watch::Sender<()>,
}

impl Proxy {
    pub(crate) async fn new() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = watch::Sender::new(());
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let uri: lapin::uri::AMQPUri = amqp_url().parse().unwrap();
                    let mut broker =
                        TcpStream::connect((uri.authority.host, uri.authority.port)).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut broker) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Proxy { port, cut }
    }

    /// Returns the broker's URL through this proxy.
    pub(crate) fn url(&self) -> String {
        let mut uri: lapin::uri::AMQPUri = amqp_url().parse().unwrap();
        (uri.authority.host, uri.authority.port) = ("127.0.0.1".to_owned(), self.port);
        uri.to_string()
    }

    /// Cuts all connections. New ones are accepted.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(());
    }
}

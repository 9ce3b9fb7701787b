use contracts::Job;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use queue::{Broker, Consumer, Message, Publisher};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Proxy, Rabbit, connect, heard, job, soon, until};

pub(crate) async fn a_rung_job_arrives(publisher: Publisher, mut consumer: Consumer) {
    let rung = job();
    publisher.ring(rung.clone());
    let message = heard(&mut consumer).await;
    assert_eq!(message.job, rung);
    message.ack();
    until(publisher.watch(), |stats| stats.published == 1).await;
    assert!(publisher.stats().connected && consumer.stats().connected);
    assert_eq!((publisher.stats().dropped, publisher.stats().refused), (0, 0));
}

#[tokio::test]
async fn a_job_arrives_unchanged_over_the_broker() {
    let rabbit = Rabbit::new().await;
    a_rung_job_arrives(rabbit.publisher().await, rabbit.consumer(8).await).await;
}

#[tokio::test]
async fn a_job_rung_before_the_broker_is_connected_arrives() {
    let rabbit = Rabbit::new().await;
    a_rung_job_arrives(rabbit.broker().publisher(rabbit.shutdown.clone()), rabbit.consumer(8).await).await;
}

#[tokio::test]
async fn many_doorbells_arrive_once_each() {
    let rabbit = Rabbit::new().await;
    let (publisher, mut consumer) = (rabbit.publisher().await, rabbit.consumer(100).await);
    let mut rung: Vec<Job> = (0..3000).map(|_| job()).collect();
    rung.chunks(7).for_each(|together| publisher.ring_all(together.to_vec()));
    let mut jobs = Vec::new();
    while jobs.len() < rung.len() {
        let message = heard(&mut consumer).await;
        jobs.push(message.job.clone());
        message.ack();
    }
    let id = |job: &Job| job.delivery_id;
    jobs.sort_by_key(id);
    rung.sort_by_key(id);
    assert_eq!(jobs, rung);
    until(publisher.watch(), |stats| stats.published == 3000).await;
}

/// With a prefetch of one, a second message proves that the first was acknowledged.
#[tokio::test]
async fn jobs_rung_together_share_a_message_acknowledged_with_its_last_job() {
    let rabbit = Rabbit::new().await;
    // Rung before there is a connection, so that all are gathered when the first message is sent.
    let publisher = rabbit.broker().publisher(rabbit.shutdown.clone());
    let jobs: Vec<Job> = (0..Job::MOST + 1).map(|_| job()).collect();
    publisher.ring_all(jobs.clone());
    until(publisher.watch(), |stats| stats.published == jobs.len() as u64).await;
    assert_eq!(rabbit.waiting().await, 2);
    let mut consumer = rabbit.consumer(1).await;
    let mut first = Vec::new();
    for job in &jobs[..Job::MOST] {
        let message = heard(&mut consumer).await;
        assert_eq!(message.job, *job);
        first.push(message);
    }
    let last = first.pop().expect("there are messages");
    first.into_iter().for_each(Message::ack);
    assert!(consumer.try_next().is_none());
    last.ack();
    assert_eq!(heard(&mut consumer).await.job, jobs[Job::MOST]);
}

#[tokio::test]
async fn the_queues_are_declared_as_documented() {
    let rabbit = Rabbit::new().await;
    rabbit.publisher().await;
    rabbit.consumer(1).await;

    let text = |text: &str| AMQPValue::LongString(text.into());
    let arguments = |changed: &str| {
        let mut table = FieldTable::default();
        for (key, value, other) in [
            ("x-queue-type", text("quorum"), text("classic")),
            ("x-max-length", AMQPValue::LongInt(10_000), AMQPValue::LongInt(9_999)),
            ("x-overflow", text("reject-publish"), text("drop-head")),
            ("x-delivery-limit", AMQPValue::LongInt(20), AMQPValue::LongInt(21)),
            ("x-dead-letter-exchange", text(""), text("amq.direct")),
            ("x-dead-letter-routing-key", text(&format!("{}.parked", rabbit.queue)), text("elsewhere")),
            ("x-dead-letter-strategy", text("at-least-once"), text("at-most-once")),
        ] {
            table.insert(key.into(), if key == changed { other } else { value });
        }
        table
    };
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let connection = connect().await;
    // A refused declaration closes its channel.
    let declare = async |queue: &str, arguments| {
        let channel = connection.create_channel().await.unwrap();
        channel.queue_declare(queue.into(), durable, arguments).await
    };
    declare(&rabbit.queue, arguments("none")).await.expect("the same arguments");
    for key in arguments("none").inner().keys() {
        declare(&rabbit.queue, arguments(key.as_str())).await.expect_err(key.as_str());
    }

    let parked = format!("{}.parked", rabbit.queue);
    declare(&parked, FieldTable::default()).await.expect_err("a classic queue");
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), text("quorum"));
    declare(&parked, quorum).await.expect("a quorum queue");
}

/// The situation when a whole installation starts at once with a new broker.
#[tokio::test]
async fn a_queue_declared_by_many_clients_at_once_works() {
    for _ in 0..10 {
        let rabbit = Rabbit::new().await;
        let publishers: Vec<Publisher> =
            (0..4).map(|_| rabbit.broker().publisher(rabbit.shutdown.clone())).collect();
        let mut consumer = rabbit.broker().consumer(10, rabbit.shutdown.clone());
        for publisher in &publishers {
            until(publisher.watch(), |stats| stats.connected).await;
        }
        let job = job();
        publishers[0].ring(job.clone());
        assert_eq!(heard(&mut consumer).await.job, job);
    }
}

#[tokio::test]
async fn unacknowledged_messages_are_redelivered_when_the_consumer_is_dropped() {
    let rabbit = Rabbit::new().await;
    let (publisher, mut first) = (rabbit.publisher().await, rabbit.consumer(2).await);
    let rung = job();
    publisher.ring(rung.clone());
    let held = heard(&mut first).await;
    drop(first);

    let mut second = rabbit.consumer(2).await;
    let again = heard(&mut second).await;
    assert_eq!(again.job, rung);
    held.ack();
    again.ack();
}

#[tokio::test]
async fn a_paused_consumer_leaves_the_queue_to_others_until_it_is_resumed() {
    let rabbit = Rabbit::new().await;
    let publisher = rabbit.publisher().await;
    let mut paused = rabbit.consumer(1).await;
    let jobs = [job(), job(), job()];
    rabbit.put_each(&jobs[..2]).await;
    let forgotten = heard(&mut paused).await;
    assert_eq!(forgotten.job, jobs[0]);
    paused.pause();
    let mut other = rabbit.consumer(10).await;
    let message = heard(&mut other).await;
    assert_eq!(message.job, jobs[1], "the first one is not given out again");
    message.ack();
    forgotten.ack(); // no effect: its connection is gone
    drop(other);
    paused.resume();
    publisher.ring(jobs[2].clone());
    assert_eq!(heard(&mut paused).await.job, jobs[2]);
}

/// Regardless of how many dispatchers hit an outage one after the other, their discarded messages are not
/// returned.
#[tokio::test]
async fn consumers_that_pause_with_a_message_cause_no_parking() {
    let rabbit = Rabbit::new().await;
    rabbit.publisher().await; // declares the queue
    rabbit.put_each(&[(); 25].map(|()| job())).await;
    for left in (0..25).rev() {
        let mut consumer = rabbit.consumer(1).await;
        heard(&mut consumer).await;
        consumer.pause();
        until(consumer.watch(), |stats| !stats.connected).await;
        soon(async { while rabbit.waiting().await > left {} }).await;
    }
    assert_eq!(rabbit.broker().depth().await.unwrap().parked, 0);
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_used_unchanged() {
    let rabbit = Rabbit::new().await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let (queue, arguments) = (rabbit.queue.as_str().into(), FieldTable::default());
    rabbit.channel.queue_declare(queue, durable, arguments).await.expect("a classic queue");
    a_rung_job_arrives(rabbit.publisher().await, rabbit.consumer(8).await).await;
}

#[tokio::test]
async fn acknowledged_messages_are_not_redelivered() {
    let rabbit = Rabbit::new().await;
    let mut first = rabbit.consumer(1).await;
    let jobs = [job(), job(), job()];
    rabbit.put_each(&jobs).await;
    // With a prefetch of one, each message proves that the one before it was acknowledged.
    heard(&mut first).await.ack();
    heard(&mut first).await.ack();
    let last = heard(&mut first).await;
    drop(first);
    let mut second = rabbit.consumer(3).await;
    assert_eq!(heard(&mut second).await.job, last.job);
    assert_eq!(rabbit.waiting().await, 0);
}

#[tokio::test]
async fn parked_messages_are_counted() {
    let rabbit = Rabbit::new().await;
    rabbit.publisher().await;
    let parked = format!("{}.parked", rabbit.queue);
    for _ in 0..2 {
        rabbit.publish_to(&parked, b"given out too often").await.await.unwrap();
    }
    let consumer = rabbit.consumer(10).await;
    until(consumer.watch(), |stats| stats.parked == 2 && stats.alive_at.is_some()).await;
    let depth = rabbit.broker().depth().await.unwrap();
    assert_eq!(depth, queue::Depth { waiting: 0, consumers: 1, parked: 2 });
}

#[tokio::test]
async fn undecodable_messages_are_counted_and_discarded() {
    let rabbit = Rabbit::new().await;
    let (publisher, mut consumer) = (rabbit.publisher().await, rabbit.consumer(1).await);
    for body in [&b"\xff garbage"[..], br#"{"version": 3}"#, br#"{"version": 2}"#, b""] {
        rabbit.put(body).await;
    }
    let rung = job();
    publisher.ring(rung.clone());
    // With a prefetch of one this proves that the others were acknowledged.
    let message = heard(&mut consumer).await;
    assert_eq!(message.job, rung);
    assert_eq!(consumer.stats().undecodable, 4);
    assert_eq!(rabbit.waiting().await, 0);
    message.ack();
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again_by_the_consumer() {
    let rabbit = Rabbit::new().await;
    let (publisher, mut consumer) = (rabbit.publisher().await, rabbit.consumer(1).await);
    rabbit.delete().await;
    until(consumer.watch(), |stats| stats.connects == 2).await;
    publisher.ring(job());
    heard(&mut consumer).await.ack();
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again_by_the_publisher() {
    let rabbit = Rabbit::new().await;
    let publisher = rabbit.publisher().await;
    rabbit.delete().await;
    publisher.ring(job());
    until(publisher.watch(), |stats| stats.connects == 2).await;
    publisher.ring(job());
    until(publisher.watch(), |stats| stats.published == 1).await;
    assert_eq!(publisher.stats().refused, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_doorbells_without_an_error_to_the_caller() {
    let rabbit = Rabbit::new().await;
    let publisher = rabbit.publisher().await;
    // A quorum queue may take a little more than its limit before it refuses.
    let mut full = false;
    while !full {
        let mut batch = Vec::new();
        for _ in 0..1000 {
            batch.push(rabbit.publish(b"{}").await);
        }
        for confirm in batch {
            full |= soon(confirm).await.unwrap().is_nack();
        }
    }
    assert!(rabbit.waiting().await >= 10_000);
    publisher.ring(job());
    until(publisher.watch(), |stats| stats.refused == 1).await;
    assert_eq!((publisher.stats().published, publisher.stats().connects), (0, 1));
}

#[tokio::test]
async fn without_a_broker_doorbells_beyond_the_buffer_are_dropped() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let broker = Broker::parse(&format!("amqp://{nobody}"), "test").unwrap();
    let publisher = broker.publisher(CancellationToken::new());
    for _ in 0..5000 {
        publisher.ring(job());
    }
    let stats = publisher.stats();
    assert_eq!((stats.connected, stats.published, stats.dropped), (false, 0, 5000 - 1024));
}

/// Whichever is tried first, and when the one that was used is lost.
#[tokio::test]
async fn of_several_hosts_one_that_is_available_is_used() {
    let rabbit = Rabbit::new().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::new().await;
    let url = proxy.url().replacen("127.0.0.1", &format!("{nobody},127.0.0.1"), 1);
    let broker = Broker::parse(&url, &rabbit.queue).unwrap();
    let publisher = broker.publisher(rabbit.shutdown.clone());
    let mut consumer = broker.consumer(1, rabbit.shutdown.clone());
    until(publisher.watch(), |stats| stats.connected).await;
    until(consumer.watch(), |stats| stats.connected).await;
    proxy.cut();
    until(publisher.watch(), |stats| stats.connects == 2).await;
    until(consumer.watch(), |stats| stats.connects == 2).await;
    publisher.ring(job());
    heard(&mut consumer).await.ack();
    assert_eq!(broker.depth().await.unwrap().consumers, 1);
}

#[tokio::test]
async fn a_lost_connection_is_replaced_and_keeps_the_prefetch() {
    let rabbit = Rabbit::new().await;
    let proxy = Proxy::new().await;
    let broker = Broker::parse(&proxy.url(), &rabbit.queue).unwrap();
    let publisher = broker.publisher(rabbit.shutdown.clone());
    let mut consumer = broker.consumer(2, rabbit.shutdown.clone());
    until(consumer.watch(), |stats| stats.connected).await;
    rabbit.put_each(&[(); 5].map(|()| job())).await;
    let held = [heard(&mut consumer).await, heard(&mut consumer).await];
    assert_eq!(rabbit.waiting().await, 3);

    proxy.cut();
    until(consumer.watch(), |stats| stats.connects == 2).await;
    until(publisher.watch(), |stats| stats.connects == 2).await;
    // Their connection is gone, so this has no effect.
    held.into_iter().for_each(Message::ack);
    let held = [heard(&mut consumer).await, heard(&mut consumer).await];
    assert_eq!(rabbit.waiting().await, 3);
    assert!(consumer.try_next().is_none());

    held.into_iter().for_each(Message::ack);
    for _ in 0..3 {
        heard(&mut consumer).await.ack();
    }
    publisher.ring(job());
    heard(&mut consumer).await.ack();
}

#[tokio::test]
async fn a_shutdown_publishes_rung_doorbells_and_requeues_unacknowledged_messages() {
    let rabbit = Rabbit::new().await;
    let (publishing, consuming) = (CancellationToken::new(), CancellationToken::new());
    let publisher = rabbit.broker().publisher(publishing.clone());
    let mut consumer = rabbit.broker().consumer(2, consuming.clone());
    until(publisher.watch(), |stats| stats.connected).await;
    until(consumer.watch(), |stats| stats.connected).await;

    for _ in 0..1000 {
        publisher.ring(job());
    }
    publishing.cancel();
    soon(publisher.closed()).await;
    assert_eq!(publisher.stats().published, 1000);
    assert!(!publisher.stats().connected);

    let held = heard(&mut consumer).await;
    consuming.cancel();
    assert!(consumer.try_next().is_none());
    assert!(soon(consumer.next()).await.is_none());
    held.ack();
    let mut another = rabbit.consumer(1000).await;
    for _ in 0..1000 {
        heard(&mut another).await.ack();
    }
}

#[tokio::test]
async fn the_connection_to_a_silent_broker_is_closed_on_drop() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = Broker::parse(&format!("amqp://{}", mute.local_addr().unwrap()), "test").unwrap();
    let mut consumer = broker.consumer(1, CancellationToken::new());
    let (mut connection, _) = soon(mute.accept()).await.unwrap();
    let mut greeting = [0; 8];
    soon(connection.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting[..4], b"AMQP");
    assert!(consumer.try_next().is_none());
    drop(consumer);
    assert_eq!(soon(connection.read(&mut greeting)).await.unwrap(), 0);
}

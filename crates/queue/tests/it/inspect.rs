//! Inspecting a broker finds what is wrong and changes nothing.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use queue::{Broker, Publishing, QueueState, Refused};

use crate::support::{Rabbit, amqp_url, heard, job, soon};

#[tokio::test]
async fn a_missing_queue_is_not_declared_and_the_users_rights_are_found() {
    let rabbit = Rabbit::new().await;
    for _ in 0..2 {
        let facts = rabbit.broker().inspect().await.unwrap();
        assert_eq!((facts.queue, facts.parked), (QueueState::Missing, None));
        assert!(facts.may_configure && facts.may_read);
        assert_eq!(facts.publishing, Publishing::Accepted);
    }
    let greeting = rabbit.broker().greeting().await.unwrap().unwrap();
    assert!(greeting.starts_with("RabbitMQ ") && greeting.contains('.'), "{greeting}");
}

#[tokio::test]
async fn a_queue_in_use_keeps_its_messages_and_gives_none_out() {
    let rabbit = Rabbit::new().await;
    rabbit.publisher().await; // declares the queues
    rabbit.put_each(&[job(), job()]).await;
    for _ in 0..30 {
        // More often than a message may be given out before it is parked.
        let facts = rabbit.broker().inspect().await.unwrap();
        assert_eq!((facts.queue, facts.parked), (QueueState::AsDeclared, Some(0)));
        assert!(facts.may_configure && facts.may_read);
    }
    assert_eq!(rabbit.waiting().await, 2);
    let mut consumer = rabbit.consumer(1).await;
    heard(&mut consumer).await.ack();
    heard(&mut consumer).await.ack();
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_found_and_unchanged() {
    let rabbit = Rabbit::new().await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let name = rabbit.queue.as_str();
    rabbit.channel.queue_declare(name.into(), durable, FieldTable::default()).await.unwrap();
    for _ in 0..2 {
        let QueueState::Different(difference) = rabbit.broker().inspect().await.unwrap().queue else {
            panic!("a difference is found")
        };
        assert!(difference.contains("inequivalent arg"), "{difference}");
    }
}

#[tokio::test]
async fn a_queue_of_another_connection_is_unusable() {
    let rabbit = Rabbit::new().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let name = rabbit.queue.as_str();
    rabbit.channel.queue_declare(name.into(), exclusive, FieldTable::default()).await.unwrap();
    let state = rabbit.broker().inspect().await.unwrap().queue;
    assert!(matches!(&state, QueueState::Unusable(reason) if reason.contains("LOCKED")), "{state:?}");
    rabbit.delete().await; // its connection ends after the cleanup, which would be refused
}

#[tokio::test]
async fn refused_credentials_and_virtual_hosts_are_told_apart() {
    let with = |change: fn(&mut lapin::uri::AMQPUri)| {
        let mut uri: lapin::uri::AMQPUri = amqp_url().parse().unwrap();
        change(&mut uri);
        Broker::parse(&uri.to_string(), "test").unwrap()
    };
    let credentials = with(|uri| uri.authority.userinfo.password = "wrong".into());
    let host = with(|uri| uri.vhost = "nowhere".into());
    for (broker, refused) in [(credentials, Refused::Credentials), (host, Refused::VirtualHost)] {
        let lost = soon(broker.inspect()).await.unwrap_err();
        assert_eq!(lost.refused(), Some(refused), "{lost}");
    }
}

#[tokio::test]
async fn a_server_of_another_protocol_is_no_broker() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = Broker::parse(&format!("amqp://{}", listener.local_addr().unwrap()), "test").unwrap();
    let serve = async {
        let (mut client, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        client
    };
    let (greeting, _client) = soon(async { tokio::join!(broker.greeting(), serve) }).await;
    assert_eq!(greeting.unwrap(), None);
}

//! What depends on the servers: running services, silence, the queue, rights, poolers.

use contracts::{Destination, Job};
use queue::Broker;
use serde_json::Value;
use store::DatabaseUrl;
use testkit::{Pooler, Proxy, RabbitNode};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{COUNT, Installation, checks, findings, report, with_user};
use crate::system::{System, shared_broker};

/// Runs `doctor` with another setting and returns the lines of its findings.
fn found(installation: &Installation, name: &str, value: &str) -> Vec<String> {
    let report = report(&installation.cli().with(name, value).run(&["doctor", "--json"]));
    let lines =
        findings(&report).into_iter().map(|(check, status, says)| format!("{status} {check}: {says}"));
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn running_services_are_recognized_at_their_addresses() {
    let any = "127.0.0.1:0";
    let listen = [("REDIAL_DISPATCHER__LISTEN", any), ("REDIAL_METRICS__LISTEN", any)];
    let mut system = System::start(&shared_broker(), 1, 1, &listen);
    let logs = system.logs.lock().unwrap().clone();
    for (message, setting) in [
        ("serving the API", "REDIAL_API__LISTEN"),
        ("answering health checks", "REDIAL_DISPATCHER__LISTEN"),
        ("serving metrics", "REDIAL_METRICS__LISTEN"),
    ] {
        let mut lines = serde_json::Deserializer::from_str(&logs).into_iter::<Value>().map(Result::unwrap);
        let line = lines.find(|line| line["message"] == message).unwrap();
        system.set(setting, line["listen"].as_str().unwrap());
    }
    let report: Value = serde_json::from_str(&system.command(&["doctor", "--json"])).unwrap();
    let [("egress", "warning", says)] = &findings(&report)[..] else { panic!("{report:#}") };
    assert!(says.contains("127.0.0.0/8 (loopback)"), "{says}");
    let ours = checks(&report).filter(|(.., says)| says.contains("is used by a running service of Redial"));
    assert_eq!(ours.count(), 3, "{report:#}");
    let queue = checks(&report).find(|(check, ..)| *check == "broker.queue").unwrap();
    assert!(queue.2.contains("a quorum queue with the expected arguments"), "{queue:?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_servers_are_reported_with_everything_else() {
    let installation = Installation::new();
    let proxy = Proxy::start(installation.database.server()).await;
    proxy.freeze();
    let DatabaseUrl::Postgres(url) = installation.database.url_through(proxy.addr) else { unreachable!() };
    let broker = format!("amqp://{}", proxy.addr);
    let cli = installation.cli().with("DATABASE_URL", &url).with("AMQP_URL", &broker);
    let report = report(&cli.run(&["doctor", "--json"]));
    let found: Vec<_> = findings(&report).into_iter().map(|(check, status, _)| (check, status)).collect();
    assert_eq!(found, [("database", "problem"), ("broker", "problem")], "{report:#}");
    let not_checked = checks(&report).filter(|(_, status, _)| *status == "not_checked");
    assert_eq!((not_checked.count(), checks(&report).count()), (15, COUNT), "{report:#}");
}

#[tokio::test]
async fn a_queue_with_other_arguments_and_parked_messages_are_warnings() {
    let installation = Installation::new();
    let (name, parked) = (&installation.queue, format!("{}.parked", installation.queue));
    // Declares a queue and its parked queue, which has fewer arguments.
    let broker = Broker::parse(&shared_broker(), name).unwrap();
    broker.depth().await.unwrap();
    let [differs] = &found(&installation, "REDIAL_BROKER__QUEUE", &parked)[..] else { panic!("one finding") };
    assert!(differs.starts_with("warning broker.queue: it exists with other arguments"), "{differs}");
    assert!(differs.contains("inequivalent arg"), "{differs}");
    broker.delete_queues().await.unwrap();

    let stand_in = Broker::parse(&shared_broker(), &parked).unwrap();
    let publisher = stand_in.publisher(CancellationToken::new());
    let id = Uuid::new_v4().to_string();
    publisher.ring(Job {
        delivery_id: id.parse().unwrap(),
        attempt: 1,
        destination: Destination::from(1),
        payload_size: None,
        org_id: id.parse().unwrap(),
        request_id: "parked".to_owned(),
        traceparent: None,
    });
    publisher.watch().wait_for(|stats| stats.published == 1).await.unwrap();
    let [is_parked] = &found(&installation, "REDIAL_BROKER__QUEUE", name)[..] else { panic!("one finding") };
    assert!(
        is_parked.starts_with("warning broker.parked: 1 messages were delivered too often"),
        "{is_parked}"
    );
    stand_in.delete_queues().await.unwrap();
}

/// Needs a node of its own, because users and alarms concern all of a broker.
#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_and_alarms_of_the_broker_are_problems() {
    let installation = Installation::new();
    let node = tokio::task::spawn_blocking(RabbitNode::start).await.unwrap();
    node.command(&["add_user", "limited", "password"]);
    let limited = with_user(&node.url(), "limited", "password");
    let requires = |url: &str, says: &str| {
        let found = found(&installation, "AMQP_URL", url);
        assert!(found.len() == 1 && found[0].starts_with("problem broker"), "{says}: {found:?}");
        assert!(found[0].contains(says), "{says}: {found:?}");
    };
    let permit = |configure, write, read| {
        node.command(&["set_permissions", "limited", configure, write, read]);
    };
    requires(&limited, "give the user permissions in it");
    permit("^$", ".*", ".*");
    requires(&limited, "it does not exist, and the user may not declare it");
    assert_eq!(found(&installation, "AMQP_URL", &node.url()), <[&str; 0]>::default());
    assert_eq!(node.command(&["list_queues", "name"]).trim(), "", "none was declared");
    // Declares the queues.
    Broker::parse(&node.url(), &installation.queue).unwrap().depth().await.unwrap();
    assert_eq!(found(&installation, "AMQP_URL", &limited), <[&str; 0]>::default());
    permit(".*", "^redial", ".*");
    requires(&limited, "the user may not write to amq.default");
    permit(".*", ".*", "^$");
    requires(&limited, "the user may not read the queue");
    node.command(&["set_vm_memory_high_watermark", "absolute", "1"]);
    requires(&node.url(), "the broker blocks publishers: low on memory");
}

#[test]
fn a_pooler_must_be_declared_and_must_not_split_transactions() {
    let installation = Installation::new();
    let database = &installation.database;
    let (by_transaction, by_statement) =
        (Pooler::start(database, "transaction"), Pooler::start(database, "statement"));
    let found = |url: DatabaseUrl| {
        let DatabaseUrl::Postgres(url) = url else { unreachable!("PostgreSQL was requested") };
        found(&installation, "DATABASE_URL", &url)
    };
    assert_eq!(found(by_transaction.url(database)), <[&str; 0]>::default());
    for (url, says) in [
        (by_transaction.undeclared(database), "add pgbouncer=true to the database's url"),
        (by_statement.url(database), "pool_mode transaction or session"),
    ] {
        let found = found(url);
        assert!(found.len() == 1 && found[0].starts_with("problem database: "), "{found:?}");
        assert!(found[0].contains(says), "{found:?}");
    }
}

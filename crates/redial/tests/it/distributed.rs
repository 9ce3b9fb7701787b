//! The distributed mode: processes, PostgreSQL and RabbitMQ, and failures of one of them.

use std::collections::HashSet;

use queue::Broker;
use receiver::{Received, Verdict};
use serde_json::Value;
use testkit::RabbitNode;

use crate::system::{System, by_delivery, shared_broker};

/// Settings that detect a killed dispatcher soon and retry its attempts at once.
const HASTY: &[(&str, &str)] = &[
    ("REDIAL_DELIVERY__TIMEOUT", "4s"),
    ("REDIAL_DELIVERY__CONNECT_TIMEOUT", "4s"),
    ("REDIAL_DELIVERY__LEASE", "6s"),
    ("REDIAL_DELIVERY__SCHEDULE", "200ms"),
];

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_redeliveries_arrive_exactly_once_with_their_exact_bytes() {
    let mut system = System::start(&shared_broker(), 2, 2, &[]);
    let runs = system.import_runs(2_000, "/ok");
    let accepted = system.redeliver_all(&runs).await;
    let arrived = by_delivery(system.gather(accepted.len()).await);
    assert_eq!(arrived.len(), accepted.len(), "each delivery arrived");
    for delivery in &accepted {
        let settled = system.settled(delivery["id"].as_str().unwrap()).await;
        let received = &arrived[settled["id"].as_str().unwrap()];
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].verdict, Verdict::Valid);
        assert_eq!(received[0].body, settled["payload_bytes"].as_str().unwrap().as_bytes());
        assert_eq!(settled["payload_bytes"], delivery["payload_bytes"], "frozen when accepted");
        assert_eq!(settled["status_code"], "succeeded");
        assert_eq!(settled["attempt_count"], 1);
        let attempts = settled["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1);
        assert_eq!((&attempts[0]["attempt_number"], &attempts[0]["status_code"]), (&1.into(), &200.into()));
    }
    let rest = system.stop().await;
    assert!(rest.is_empty(), "{} more callbacks than redeliveries", rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_dispatcher_under_load_loses_nothing_and_repeats_no_attempt() {
    let mut system = System::start(&shared_broker(), 1, 2, HASTY);
    // Slow enough that some attempts are in flight whenever the dispatcher is killed.
    let runs = system.import_runs(600, "/hang/1");
    let victim = system.dispatchers.remove(0);
    let kill = async {
        while system.receiver.posts() < 100 {
            tokio::task::yield_now().await;
        }
        victim.kill();
    };
    let (accepted, ()) = tokio::join!(system.redeliver_all(&runs), kill);
    system.add_dispatcher();
    let settled = prove(system, accepted).await;
    let unknown = |delivery: &Value| delivery["attempts"].to_string().contains("outcome_unknown");
    assert!(settled.iter().any(unknown), "the kill interrupted attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_purging_and_restarting_the_broker_under_load_loses_nothing() {
    let mut rabbit = tokio::task::spawn_blocking(RabbitNode::start).await.unwrap();
    let system = System::start(&rabbit.url(), 1, 2, HASTY);
    let runs = system.import_runs(4_000, "/ok");
    let queue = system.queue.clone();
    let disturbance = tokio::task::spawn_blocking(move || {
        rabbit.purge(&queue);
        rabbit.kill();
        rabbit.restart();
        rabbit
    });
    // Sequential, so that the load lasts as long as the disturbance.
    let mut accepted = Vec::new();
    for run in runs {
        if disturbance.is_finished() {
            break;
        }
        accepted.push(system.redeliver(0, run).await);
    }
    let rabbit = disturbance.await.unwrap();
    assert!(accepted.len() > 100, "only {} were requested meanwhile", accepted.len());
    prove(system, accepted).await;
    drop(rabbit);
}

/// As in installations where an operator creates the queues and programs only use them.
#[tokio::test(flavor = "multi_thread")]
async fn existing_queues_are_used_without_the_configure_permission() {
    let rabbit = tokio::task::spawn_blocking(RabbitNode::start).await.unwrap();
    let mut system = System::start(&rabbit.url(), 0, 0, &[]);
    Broker::parse(&rabbit.url(), &system.queue).unwrap().depth().await.unwrap(); // declares them
    rabbit.command(&["add_user", "limited", "secret"]);
    rabbit.command(&["set_permissions", "limited", "^$", ".*", ".*"]);
    let limited = rabbit.url().replace("guest:guest", "limited:secret");
    let absent = Broker::parse(&limited, "absent").unwrap().depth().await.unwrap_err().to_string();
    assert!(absent.contains("queue absent") && absent.contains("the right to configure it"), "{absent}");

    system.set("REDIAL_BROKER__URL", &limited);
    system.add_api();
    system.add_dispatcher();
    let runs = system.import_runs(20, "/ok");
    let accepted = system.redeliver_all(&runs).await;
    assert_eq!(by_delivery(system.gather(accepted.len()).await).len(), accepted.len());
    let depth = Broker::parse(&limited, &system.queue).unwrap().depth().await.unwrap();
    assert_eq!((depth.consumers, depth.waiting), (1, 0));
    system.stop().await;
}

/// Checks that nothing is lost: every accepted delivery succeeded. And that nothing is hidden: every arrival
/// is an attempt on record, no attempt arrived twice, and a delivery that arrived more than once has an
/// attempt without a response that explains it.
async fn prove(mut system: System, accepted: Vec<Value>) -> Vec<Value> {
    let mut settled = Vec::new();
    for delivery in &accepted {
        settled.push(system.settled(delivery["id"].as_str().unwrap()).await);
    }
    let mut arrived = system.gather(accepted.len()).await;
    arrived.extend(system.stop().await);
    assert!(arrived.iter().all(|received| received.verdict == Verdict::Valid));
    let attempt = |received: &Received| {
        let part = |name| received.header(name).unwrap().to_owned();
        (part("webhook-id"), part("redial-attempt"))
    };
    let distinct: HashSet<_> = arrived.iter().map(attempt).collect();
    assert_eq!(distinct.len(), arrived.len(), "no attempt is sent twice");
    let arrived = by_delivery(arrived);
    for delivery in &settled {
        assert_eq!(delivery["status_code"], "succeeded", "{delivery}");
        let attempts = delivery["attempts"].as_array().unwrap();
        let numbers: Vec<_> =
            attempts.iter().map(|attempt| attempt["attempt_number"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=attempts.len() as u64).collect::<Vec<_>>(), "numbered without gaps");
        // An attempt without a response on record may still have reached the receiver.
        let unanswered = attempts.iter().filter(|attempt| attempt["status_code"].is_null()).count();
        let received = &arrived[delivery["id"].as_str().unwrap()];
        assert!(received.len() <= 1 + unanswered, "an unexplained duplicate: {delivery}");
        assert!(
            received.iter().all(|one| one.body == delivery["payload_bytes"].as_str().unwrap().as_bytes())
        );
    }
    settled
}

//! What a dispatcher records for odd, careless, broken or hostile receivers, one row
//! each. `scripts/field` prints the table. Each receiver is called once, on both databases.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "the table is for people")]

mod keep_alive;
mod receivers;
mod situations;

use std::sync::Arc;
use std::time::Duration;

use contracts::{Attempt, DeliveryId, Destination, Job, JsonText, OrgId, RunId};
use dispatcher::{Certificates, Dispatcher, Limits, Progress, RetryPolicy, Settings};
use futures_util::future::join_all;
use queue::Publisher;
use store::{AcceptPolicy, Accepted, Deliver, DeliveryParts, Redelivery, Store, StoreError};
use testkit::{Backend, TestDatabase};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::keep_alive::CALLBACKS;
use crate::situations::{Expected, situations};

/// Timeout of an attempt: short, since some receivers use it up.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Timeout of a test. Only a failing test reaches it.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn settings() -> Settings {
    Settings {
        limits: Limits {
            max_in_flight: 256,
            max_in_flight_bytes: 256 << 20,
            max_in_flight_per_destination: 32,
            lease: Duration::from_secs(60),
            timeout: TIMEOUT,
            retry: RetryPolicy {
                schedule: vec![Duration::from_millis(100)],
                jitter: 0.1,
                stop_on_gone: false,
                hold_cap: Duration::from_secs(900),
            },
        },
        connect_timeout: Duration::from_secs(3),
        body_timeout: Duration::from_secs(1),
        send_traceparent: true,
        secret_overlap: Duration::ZERO,
        certificates: Certificates::default(),
        retention: dispatcher::Retention::default(),
        drain: Duration::from_secs(20),
    }
}

/// A running dispatcher with a database of its own.
struct Stack {
    store: Store,
    org: OrgId,
    shutdown: CancellationToken,
    publisher: Publisher,
    polling: tokio::sync::Mutex<()>,
    _database: TestDatabase,
}

impl Stack {
    async fn start(backend: Backend) -> Stack {
        let database = TestDatabase::new(backend);
        let store = database.store().await;
        let keyring = testkit::keyring();
        let org =
            store.write(|tx, now| Ok::<_, StoreError>(store::create_organization(tx, now, "field")?.id));
        let org = org.await.unwrap();
        let (publisher, consumer) = queue::in_process(256);
        let shutdown = CancellationToken::new();
        let keys = keyring.clone();
        let dispatcher = Dispatcher {
            store: store.clone(),
            keyring,
            key_source: Arc::new(move || Ok(keys.clone())),
            egress: egress::Policy::new(vec!["127.0.0.0/8".parse().unwrap()]),
            settings: settings(),
            progress: Progress::default(),
            metrics: ops::Metrics::new("test"),
            tracer: Default::default(),
        };
        tokio::spawn(dispatcher.run(consumer, shutdown.clone()));
        Stack { store, org, shutdown, publisher, polling: tokio::sync::Mutex::default(), _database: database }
    }

    /// Accepts a delivery of a run whose output is a string of `size` bytes.
    async fn accept(&self, url: &str, size: usize) -> Job {
        let policy = AcceptPolicy { max_attempts: 1, payload_format: contracts::PayloadFormat::Python };
        let (org, mut update) = (self.org, testkit::terminal_run(url));
        if size > 0 {
            update.output = Some(JsonText::from_trusted(format!("\"{}\"", "x".repeat(size))));
        }
        let accepted = self.store.write_within(TEST_TIMEOUT, move |tx: &mut _, now| {
            let run = RunId(Uuid::new_v4());
            store::record_run(tx, now, &policy, Deliver::Never, (org, run), &update, &"field".into())?;
            match store::redeliver(tx, now, &policy, org, run, "field".into())? {
                Redelivery::Accepted(Accepted { delivery, .. }) => Ok::<_, StoreError>(delivery),
                refused => panic!("{refused:?}"),
            }
        });
        let delivery = accepted.await.unwrap();
        Job {
            delivery_id: delivery.id,
            attempt: 1,
            destination: Destination::of(org, &delivery.callback_url),
            payload_size: Some(delivery.payload_bytes.len() as u64),
            org_id: org,
            request_id: "field".to_owned(),
            traceparent: None,
        }
    }

    /// Returns the only attempt of a delivery, once it is recorded. Polls the row, since there is no event to
    /// wait for.
    async fn attempt(&self, id: DeliveryId) -> Attempt {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            let org = self.org;
            // One poll at a time: the store refuses those that wait too long for a connection.
            let polling = self.polling.lock().await;
            let delivery = self
                .store
                .read(move |tx| store::find_delivery(tx, org, id, DeliveryParts::ALL))
                .await
                .unwrap()
                .unwrap();
            if let Some(attempt) = delivery.attempts.into_iter().next() {
                return attempt;
            }
            drop(polling);
            assert!(Instant::now() < deadline, "an attempt is recorded in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Calls all receivers at once, prints the table, and returns the rows that are wrong.
async fn wrong_records(backend: Backend) -> Vec<String> {
    let stack = Stack::start(backend).await;
    let mut called = Vec::new();
    for situation in situations().await {
        let job = stack.accept(&situation.url, situation.payload).await;
        called.push((situation, job.delivery_id));
        stack.publisher.ring(job);
    }
    println!("\n{backend:?}");
    println!("{:4} {:58} {:>6} {:>7}  what is on record", "", "the receiver …", "status", "ms");
    let mut wrong = Vec::new();
    for (situation, id) in called {
        let attempt = stack.attempt(id).await;
        let found = situation.expected.check(&attempt);
        let status = attempt.status_code.map_or("-".to_owned(), |status| status.to_string());
        let words = match (&attempt.error_message, &attempt.response_body) {
            (Some(message), _) => message.clone(),
            (None, Some(body)) => format!("{:?}", body.chars().take(40).collect::<String>()),
            (None, None) => String::new(),
        };
        let mark = if found.is_ok() { "ok" } else { "NO" };
        let time = attempt.response_time_ms.unwrap_or_default();
        println!("{mark:4} {:58} {status:>6} {time:>7}  {words}", situation.name);
        if let Err(problem) = found {
            wrong.push(format!("{backend:?}: a receiver that {}: {problem}: {attempt:?}", situation.name));
        }
    }
    stack.shutdown.cancel();
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn the_behaviour_of_each_receiver_is_recorded_correctly() {
    let mut wrong = Vec::new();
    for backend in [Backend::Sqlite, Backend::Postgres] {
        wrong.extend(
            timeout(2 * TEST_TIMEOUT, wrong_records(backend))
                .await
                .expect("all attempts are recorded in time"),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_callback_is_lost_at_the_announced_end_of_an_idle_connection() {
    let stack = Stack::start(Backend::Sqlite).await;
    let aims = [true, false].map(|is_announced| keep_alive::aimed_at_idle_ends(&stack, is_announced));
    let [announced, silent] = <[usize; 2]>::try_from(join_all(aims).await).unwrap();
    println!(
        "\nOf {CALLBACKS} callbacks aimed at the end of an idle connection {announced} cost an attempt, \
         and {silent} of {CALLBACKS} where the receiver does not announce it"
    );
    assert_eq!(announced, 0);
}

/// Checks an attempt against the expected record; the error says what differs.
impl Expected {
    fn check(&self, attempt: &Attempt) -> Result<(), String> {
        match self {
            Expected::Status(status, body) => {
                let answer = attempt.response_body.as_deref().unwrap_or_default();
                let time = attempt.response_time_ms.unwrap_or(i64::MAX);
                if attempt.status_code != Some(*status) {
                    Err(format!("expected status {status}"))
                } else if (200..300).contains(status) && attempt.error_message.is_some() {
                    Err("expected success".to_owned())
                } else if time > 3_000 {
                    Err("the head was there at once".to_owned())
                } else if !answer.contains(body) {
                    Err(format!("expected the body {body:?}"))
                } else {
                    Ok(())
                }
            }
            Expected::Failed(words) => {
                let message = attempt.error_message.as_deref().unwrap_or_default();
                let missing = words.iter().find(|words| !message.contains(**words));
                match missing {
                    _ if attempt.status_code.is_some_and(|status| (200..300).contains(&status)) => {
                        Err("expected a failure".to_owned())
                    }
                    Some(words) => Err(format!("expected {words:?}")),
                    None => Ok(()),
                }
            }
        }
    }
}

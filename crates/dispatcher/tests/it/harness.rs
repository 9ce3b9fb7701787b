//! A dispatcher with a database, a queue and a receiver of the test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use contracts::{Delivery, DeliveryId, Destination, Job, OrgId, RunId, SecretId, SigningSecret, Timestamp};
use dispatcher::{Certificates, Dispatcher, DispatcherError, Limits, Progress, RetryPolicy, Settings};
use queue::Publisher;
use receiver::{Received, Receiver};
use store::{AcceptPolicy, Accepted, Deliver, Keyring, RecordedRun, Redelivery, Store, StoreError};
use testkit::{Backend, TestDatabase};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Timeout of a wait. Only a failing test reaches it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Harness {
    pub(crate) store: Store,
    pub(crate) keyring: Keyring,
    pub(crate) org: OrgId,
    pub(crate) secret: SigningSecret,
    pub(crate) receiver: Receiver,
    pub(crate) arrivals: UnboundedReceiver<Received>,
    pub(crate) accept: AcceptPolicy,
    pub(crate) database: TestDatabase,
}

/// A running dispatcher.
pub(crate) struct Running {
    pub(crate) publisher: Publisher,
    pub(crate) progress: Progress,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), DispatcherError>>,
}

/// Returns settings with short waits, otherwise as in production.
pub(crate) fn settings() -> Settings {
    let schedule = vec![Duration::from_millis(300), Duration::from_millis(600)];
    let hold_cap = Duration::from_secs(900);
    Settings {
        limits: Limits {
            max_in_flight: 64,
            max_in_flight_bytes: 64 << 20,
            max_in_flight_per_destination: 8,
            lease: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            retry: RetryPolicy { schedule, jitter: 0.1, stop_on_gone: false, hold_cap },
        },
        connect_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(1),
        send_traceparent: true,
        certificates: Certificates::default(),
        secret_overlap: Duration::from_secs(24 * 3600),
        retention: dispatcher::Retention::default(),
        drain: Duration::from_secs(20),
    }
}

/// Returns [`settings`] with some limits changed.
pub(crate) fn limited(change: impl FnOnce(&mut Limits)) -> Settings {
    let mut settings = settings();
    change(&mut settings.limits);
    settings
}

pub(crate) fn loopback() -> egress::Policy {
    egress::Policy::new(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()])
}

impl Harness {
    pub(crate) async fn new(backend: Backend) -> Harness {
        let database = TestDatabase::new(backend);
        let store = database.store().await;
        let keyring = testkit::keyring();
        let sealing = keyring.clone();
        let (org, secret) = store
            .write(move |tx, now| {
                let org = store::create_organization(tx, now, "test")?.id;
                let secret = store::create_secret(tx, now, &sealing, org, None)?;
                Ok::<_, StoreError>((org, secret.plain_secret))
            })
            .await
            .unwrap();
        let (sink, arrivals) = unbounded_channel();
        let options =
            receiver::Options { secrets: vec![secret.clone()], sink: Some(sink), ..Default::default() };
        let receiver = Receiver::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).unwrap();
        let accept = AcceptPolicy { max_attempts: 3, payload_format: contracts::PayloadFormat::Python };
        Harness { store, keyring, org, secret, receiver, arrivals, accept, database }
    }

    /// Starts a dispatcher that may call loopback addresses.
    pub(crate) fn dispatch(&self, settings: Settings) -> Running {
        self.dispatch_under(settings, loopback())
    }

    pub(crate) fn dispatch_under(&self, settings: Settings, egress: egress::Policy) -> Running {
        let (publisher, consumer) = queue::in_process(64);
        let shutdown = CancellationToken::new();
        let progress = Progress::default();
        let keyring = self.keyring.clone();
        let dispatcher = Dispatcher {
            store: self.store.clone(),
            keyring: self.keyring.clone(),
            key_source: Arc::new(move || Ok(keyring.clone())),
            egress,
            settings,
            progress: progress.clone(),
            metrics: ops::Metrics::new("test"),
            tracer: Default::default(),
        };
        let task = tokio::spawn(dispatcher.run(consumer, shutdown.clone()));
        Running { publisher, progress, shutdown, task }
    }

    /// Records an ended run and accepts a redelivery of it.
    pub(crate) async fn accept(&self, url: &str) -> Delivery {
        let (org, accept) = (self.org, self.accept);
        let update = testkit::terminal_run(url);
        let accepted = self.store.write(move |tx, now| {
            let run = RunId(Uuid::new_v4());
            let recorded =
                store::record_run(tx, now, &accept, Deliver::Never, (org, run), &update, &"test".into())?;
            assert!(matches!(recorded, RecordedRun::Created(_, None)));
            match store::redeliver(tx, now, &accept, org, run, "req-1".into())? {
                Redelivery::Accepted(Accepted { delivery, .. }) => Ok::<_, StoreError>(delivery),
                refused => panic!("{refused:?}"),
            }
        });
        accepted.await.unwrap()
    }

    /// Returns the doorbell for an attempt.
    pub(crate) fn job(&self, delivery: &Delivery, attempt: i32) -> Job {
        Job {
            delivery_id: delivery.id,
            attempt,
            destination: Destination::of(self.org, &delivery.callback_url),
            payload_size: Some(delivery.payload_bytes.len() as u64),
            org_id: self.org,
            request_id: "req-1".to_owned(),
            traceparent: None,
        }
    }

    pub(crate) async fn arrival(&mut self) -> Received {
        timeout(TIMEOUT, self.arrivals.recv()).await.expect("a callback arrives in time").unwrap()
    }

    pub(crate) async fn delivery(&self, id: DeliveryId) -> Delivery {
        let org = self.org;
        self.store
            .read(move |tx| store::find_delivery(tx, org, id, store::DeliveryParts::ALL))
            .await
            .unwrap()
            .unwrap()
    }

    /// Returns when a secret was last used, once that is recorded. Polls the row, since it is written
    /// concurrently to the attempt.
    pub(crate) async fn secret_used_at(&self, id: SecretId) -> Timestamp {
        let (org, deadline) = (self.org, Instant::now() + TIMEOUT);
        loop {
            let secret = self.store.read(move |tx| store::find_secret(tx, org, id)).await.unwrap().unwrap();
            if let Some(used_at) = secret.last_used_at {
                return used_at;
            }
            assert!(Instant::now() < deadline, "the use of the secret is not recorded in time");
            tokio::task::yield_now().await;
        }
    }

    /// Returns the delivery once `is_there` holds. Polls the row, since there is no event to wait for.
    pub(crate) async fn delivery_when(
        &self,
        id: DeliveryId,
        is_there: impl Fn(&Delivery) -> bool,
    ) -> Delivery {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let delivery = self.delivery(id).await;
            if is_there(&delivery) {
                return delivery;
            }
            assert!(Instant::now() < deadline, "not in time: {delivery:#?}");
            tokio::task::yield_now().await;
        }
    }

    /// Returns the delivery once its first attempt has been claimed and handed back.
    pub(crate) async fn handed_back(&self, delivery: &Delivery) -> Delivery {
        let is_back = |now: &Delivery| now.updated_at > delivery.updated_at && now.attempt_count == 0;
        self.delivery_when(delivery.id, is_back).await
    }

    pub(crate) async fn settled(&self, id: DeliveryId) -> Delivery {
        self.delivery_when(id, |delivery| delivery.completed_at.is_some()).await
    }

    /// Sends one attempt to `url` and returns the delivery with that attempt on record.
    pub(crate) async fn after_first_attempt(&self, running: &Running, url: &str) -> Delivery {
        let delivery = self.accept(url).await;
        running.publisher.ring(self.job(&delivery, 1));
        self.delivery_when(delivery.id, |delivery| !delivery.attempts.is_empty()).await
    }
}

impl Running {
    /// Stops the dispatcher and waits until it has stopped.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        timeout(TIMEOUT, self.task).await.expect("the dispatcher stops in time").unwrap().unwrap();
    }
}

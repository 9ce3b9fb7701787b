//! Installation of one scenario: its own database, queue and processes, and a receiver with a ledger.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use contracts::{Delivery, DeliveryId, DeliveryStatus, OrgId, RunId, RunUpdate, Scopes, Timestamp};
use queue::{Broker, Depth};
use store::{
    AcceptPolicy, AnyConnection, DatabaseUrl, Deliver, DeliveryFilter, DeliveryParts, Keyring, PageRequest,
    SortOrder, Store, StoreError, count_deliveries, deliveries_page, find_delivery, record_run,
};
use testkit::{Cluster, RabbitNode, free_port};
use tokio::time::sleep;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::process::{Process, ProcessSpec};

/// Servers that all scenarios share: a private PostgreSQL cluster and a private RabbitMQ node.
pub(crate) struct Servers {
    pub(crate) cluster: Cluster,
    pub(crate) node: RabbitNode,
    pub(crate) binary: PathBuf,
    /// Directory of the logs.
    pub(crate) directory: PathBuf,
}

/// The database and the broker of an installation.
pub(crate) struct Place {
    /// Name of the database.
    pub(crate) database: String,
    pub(crate) database_url: String,
    pub(crate) broker_url: String,
}

/// Settings of a scenario.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) apis: usize,
    pub(crate) dispatchers: usize,
    pub(crate) lease: Duration,
    /// Timeout of an attempt.
    pub(crate) timeout: Duration,
    /// Waits between attempts, in the format of the setting.
    pub(crate) schedule: &'static str,
    /// Jitter of the waits.
    pub(crate) jitter: &'static str,
    /// More settings, by their environment variables.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl Plan {
    /// Returns a plan with default times.
    pub(crate) fn of(name: &'static str, apis: usize, dispatchers: usize) -> Plan {
        Plan {
            name,
            apis,
            dispatchers,
            lease: Duration::from_secs(60),
            timeout: Duration::from_secs(10),
            schedule: "10s,1m,5m",
            jitter: "0.1",
            settings: Vec::new(),
        }
    }
}

/// A running installation.
pub(crate) struct Installation {
    pub(crate) plan: Plan,
    pub(crate) logs: PathBuf,
    pub(crate) database: String,
    pub(crate) queue: String,
    pub(crate) store: Store,
    pub(crate) broker: Broker,
    pub(crate) org: OrgId,
    pub(crate) token: String,
    pub(crate) ledger: Ledger,
    pub(crate) http: reqwest::Client,
    pub(crate) apis: Vec<Process>,
    pub(crate) dispatchers: Vec<Process>,
}

/// Size of an ordinary run's output, in bytes.
pub(crate) const OUTPUT: usize = 700;
/// Rows per transaction, or per page.
const CHUNK: usize = 500;
/// Timeout for deliveries to end.
const TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Installation {
    /// Sets up an installation on the shared servers and starts its processes.
    pub(crate) async fn open(servers: &Servers, plan: Plan) -> Result<Installation> {
        let database = format!("{}_{}", plan.name.replace('-', "_"), Uuid::new_v4().simple());
        servers.cluster.sql("postgres", &format!("CREATE DATABASE {database}"))?;
        let database_url = servers.cluster.url(&database);
        Self::open_at(servers, plan, Place { database, database_url, broker_url: servers.node.url() }).await
    }

    /// Like [`Installation::open`], in an existing empty database and at any broker.
    pub(crate) async fn open_at(servers: &Servers, plan: Plan, place: Place) -> Result<Installation> {
        let Place { database, database_url, broker_url } = place;
        let url: DatabaseUrl = database_url.parse()?;
        store::migrate(&mut url.connect()?)?;
        let store = Store::open(&url, 4).await?;
        let key = Keyring::generate("chaos");
        let keyring = Keyring::parse(&[key.as_str()])?;
        let made = store.write(move |tx, now| {
            let org = store::create_organization(tx, now, "chaos")?.id;
            let token = store::create_token(tx, now, org, Scopes::All, None, None)?.token.to_string();
            let secret = store::create_secret(tx, now, &keyring, org, None)?.plain_secret;
            Ok::<_, StoreError>((org, token, secret))
        });
        let (org, token, secret) = made.await?;
        let queue = format!("redial.chaos.{}.{}", plan.name, Uuid::new_v4().simple());
        let environment = [
            ("REDIAL_DATABASE__URL", database_url),
            ("REDIAL_BROKER__URL", broker_url.clone()),
            ("REDIAL_BROKER__QUEUE", queue.clone()),
            ("REDIAL_EGRESS__ALLOW", "127.0.0.0/8".to_owned()),
            ("REDIAL_SECRETS__KEYS", key.to_string()),
            ("REDIAL_LOG__FORMAT", "json".to_owned()),
            // Claims are logged at level debug.
            ("REDIAL_LOG__FILTER", "info,dispatcher=debug".to_owned()),
            ("REDIAL_DELIVERY__LEASE", format!("{}s", plan.lease.as_secs())),
            ("REDIAL_DELIVERY__TIMEOUT", format!("{}s", plan.timeout.as_secs())),
            ("REDIAL_DELIVERY__CONNECT_TIMEOUT", format!("{}ms", plan.timeout.as_millis() / 2)),
            ("REDIAL_DELIVERY__SCHEDULE", plan.schedule.to_owned()),
            ("REDIAL_DELIVERY__JITTER", plan.jitter.to_owned()),
        ]
        .into_iter()
        .chain(plan.settings.iter().cloned())
        .map(|(key, value)| (key.to_owned(), value));
        let environment: Vec<(String, String)> = environment.collect();
        let broker = Broker::parse(&broker_url, &queue)?;
        // Declares the queue. RabbitMQ 3.10 can fail if several connections declare a new quorum queue at the
        // same moment.
        broker.depth().await?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        let logs = servers.directory.join(plan.name);
        // Logs of an earlier run would be mistaken for logs of this one.
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => std::fs::create_dir_all(&logs)?,
        }
        let (apis, dispatchers) = (plan.apis, plan.dispatchers);
        let mut installation = Installation {
            plan,
            logs: logs.clone(),
            database,
            queue,
            store,
            broker,
            org,
            token,
            ledger: Ledger::open(secret)?,
            http,
            apis: Vec::new(),
            dispatchers: Vec::new(),
        };
        let spec = |service, number| spec(servers, &logs, &environment, service, number);
        for number in 1..=apis {
            installation.apis.push(Process::start(spec("api", number)?)?);
        }
        for number in 1..=dispatchers {
            installation.dispatchers.push(Process::start(spec("dispatcher", number)?)?);
        }
        for process in installation.apis.iter_mut().chain(&mut installation.dispatchers) {
            process.answers(&installation.http).await?;
        }
        Ok(installation)
    }

    /// Stops the dispatchers and returns their specs.
    pub(crate) async fn stop_dispatchers(&mut self) -> Result<Vec<ProcessSpec>> {
        let mut specs = Vec::new();
        for mut dispatcher in self.dispatchers.drain(..) {
            dispatcher.terminate().await?;
            specs.push(dispatcher.spec.clone());
        }
        Ok(specs)
    }

    /// Starts dispatchers without waiting until they are ready.
    pub(crate) fn start_dispatchers(&mut self, specs: Vec<ProcessSpec>) -> Result<()> {
        for spec in specs {
            self.dispatchers.push(Process::start(spec)?);
        }
        Ok(())
    }

    /// Records `count` ended runs without automatic deliveries. Their callback URL is `path` of the receiver.
    pub(crate) async fn runs(&self, count: usize, path: &str) -> Result<Vec<RunId>> {
        self.runs_with(count, &self.ledger.url(path), OUTPUT).await
    }

    /// Like [`Installation::runs`], with any URL and an output of `output` bytes.
    pub(crate) async fn runs_with(&self, count: usize, url: &str, output: usize) -> Result<Vec<RunId>> {
        let body = format!(
            r#"{{"status_code":"succeeded","output":{{"text":"{}"}},"duration_ms":1,"callback_url":"{url}","metadata":{{}}}}"#,
            "x".repeat(output)
        );
        let update = RunUpdate::parse(body.as_bytes()).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
        let policy = AcceptPolicy { max_attempts: 8, payload_format: contracts::PayloadFormat::Python };
        let runs: Vec<RunId> = (0..count).map(|_| RunId(Uuid::new_v4())).collect();
        for chunk in runs.chunks(CHUNK) {
            let (chunk, update, org) = (chunk.to_vec(), update.clone(), self.org);
            let record = self.store.write(move |tx, now| {
                for run in chunk {
                    record_run(tx, now, &policy, Deliver::Never, (org, run), &update, &"chaos".into())?;
                }
                Ok::<_, StoreError>(())
            });
            record.await?;
        }
        Ok(runs)
    }

    /// Returns the numbers of ended and open deliveries, or `None` while the database is unavailable.
    pub(crate) async fn counts(&self) -> Option<(usize, usize)> {
        let org = self.org;
        let counts: HashMap<DeliveryStatus, i64> =
            self.store.read(move |tx| count_deliveries(tx, org)).await.ok()?;
        let of = |status| usize::try_from(counts.get(&status).copied().unwrap_or(0)).unwrap_or(0);
        let ended = of(DeliveryStatus::Succeeded) + of(DeliveryStatus::Failed);
        Some((ended, of(DeliveryStatus::Pending) + of(DeliveryStatus::Delivering)))
    }

    /// Waits until `count` deliveries have ended and no delivery is open. Returns how long that took.
    pub(crate) async fn all_ended(&self, count: usize) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let counts = self.counts().await;
            if let Some((ended, 0)) = counts
                && ended >= count
            {
                return Ok(began.elapsed());
            }
            ensure!(began.elapsed() < TIMEOUT, "of {count} deliveries (ended, open): {counts:?}");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns all deliveries with their attempts.
    pub(crate) async fn history(&self) -> Result<Vec<Delivery>> {
        self.history_of(None, None).await
    }

    /// Returns the deliveries accepted at `after` or later, and before `before`, with their attempts.
    pub(crate) async fn history_of(
        &self,
        after: Option<Timestamp>,
        before: Option<Timestamp>,
    ) -> Result<Vec<Delivery>> {
        let (mut all, mut from) = (Vec::new(), None);
        loop {
            let org = self.org;
            let request = PageRequest {
                limit: CHUNK,
                order: SortOrder::Ascending,
                from,
                created_after: after,
                created_before: before,
                ..PageRequest::NEWEST
            };
            let page = self.store.read(move |tx| {
                deliveries_page(tx, org, &DeliveryFilter::default(), &request, DeliveryParts::SHOWN)
            });
            let page = page.await?;
            from = page.rows.last().map(|(position, _)| *position);
            all.extend(page.rows.into_iter().map(|(_, delivery)| delivery));
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Returns deliveries by their ids, with their attempts.
    pub(crate) async fn deliveries(&self, ids: Vec<DeliveryId>) -> Result<Vec<Delivery>> {
        let org = self.org;
        let read = move |tx: &mut AnyConnection| {
            let found = ids.into_iter().map(|id| find_delivery(tx, org, id, DeliveryParts::SHOWN));
            found.collect::<Result<Vec<_>, StoreError>>()
        };
        Ok(self.store.read(read).await?.into_iter().flatten().collect())
    }

    /// Returns the depth of the queue.
    pub(crate) async fn depth(&self) -> Result<Depth> {
        self.broker.depth().await.context("the depth of the queue can't be read")
    }

    /// Ends all processes and deletes the queues.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.apis.clear();
        self.dispatchers.clear();
        Ok(self.broker.delete_queues().await?)
    }
}

fn spec(
    servers: &Servers,
    logs: &Path,
    environment: &[(String, String)],
    service: &'static str,
    number: usize,
) -> Result<ProcessSpec> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let name = format!("{service}-{number}");
    let mut environment = environment.to_vec();
    environment.push((format!("REDIAL_{}__LISTEN", service.to_uppercase()), address.to_string()));
    let log = logs.join(format!("{name}.log"));
    Ok(ProcessSpec {
        binary: servers.binary.clone(),
        service,
        name,
        address,
        environment,
        wrapper: Vec::new(),
        log,
    })
}

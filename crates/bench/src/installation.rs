//! The measured installation: its own database and queue, and processes of the real program.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use queue::Broker;
use serde::Deserialize;
use tempfile::TempDir;
use testkit::{Process, Signal};
use uuid::Uuid;

use crate::cost::{Processes, Usage};
use crate::{Arguments, TIMEOUT};

/// Encryption key of the secrets: 32 bytes that protect nothing.
const KEY: &str = "bench:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const SERVER: &str = "postgres://postgres@127.0.0.1:5432/postgres";
const BROKER: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

/// A running installation with its own organization.
pub(crate) struct Installation {
    binary: PathBuf,
    environment: Vec<(&'static str, String)>,
    /// URL of the PostgreSQL server, and the name of the database.
    server: Option<(String, String)>,
    broker: Option<Broker>,
    api: Option<Process>,
    dispatchers: Vec<Dispatcher>,
    /// Dispatchers that finish what they have in flight.
    leaving: Vec<Process>,
    base_url: String,
    org: String,
    token: String,
    secret: String,
    directory: TempDir,
}

/// A running dispatcher, or `redial dev`.
struct Dispatcher {
    process: Process,
    /// Where it serves its metrics.
    metrics: Option<SocketAddr>,
}

/// Used fields of `dev.json`, which `redial dev` writes.
#[derive(Deserialize)]
struct Dev {
    base_url: String,
    token: String,
    organization_id: String,
    signing_secret: String,
}

impl Installation {
    /// Starts what the arguments describe.
    pub(crate) fn start(arguments: &Arguments) -> Result<Installation> {
        let installation = Installation::empty(&arguments.binary)?;
        if arguments.embedded {
            installation.with_dev()
        } else {
            installation.with_services(arguments.dispatchers)
        }
    }

    /// Starts an api and dispatchers with these settings.
    pub(crate) fn services(
        binary: &Path,
        dispatchers: usize,
        settings: &[(&'static str, String)],
    ) -> Result<Installation> {
        let mut installation = Installation::empty(binary)?;
        installation.environment.extend_from_slice(settings);
        installation.with_services(dispatchers)
    }

    fn empty(binary: &Path) -> Result<Installation> {
        Ok(Installation {
            binary: binary.canonicalize().context("--binary does not exist")?,
            environment: vec![
                ("REDIAL_EGRESS__ALLOW", "127.0.0.0/8".into()),
                ("REDIAL_LOG__FILTER", "warn".into()),
                ("REDIAL_DELIVERY__SCHEDULE", "1s".into()),
                ("REDIAL_DELIVERY__JITTER", "0".into()),
            ],
            server: None,
            broker: None,
            api: None,
            dispatchers: Vec::new(),
            leaving: Vec::new(),
            base_url: String::new(),
            org: String::new(),
            token: String::new(),
            secret: String::new(),
            directory: tempfile::tempdir()?,
        })
    }

    /// Starts `redial dev` with its own SQLite file.
    fn with_dev(mut self) -> Result<Installation> {
        let data = self.directory.path().join("data");
        let mut command =
            self.redial(&["dev", "--listen", "127.0.0.1:0", "--receiver", "127.0.0.1:0", "--data-dir"]);
        let dev = Process::start(command.arg(&data).stdout(Stdio::null()))?;
        self.dispatchers.push(Dispatcher { process: dev, metrics: None });
        let file = data.join("dev.json");
        until("redial dev starts", || Ok(std::fs::read(&file).is_ok_and(|json| !json.is_empty())))?;
        let dev: Dev = serde_json::from_slice(&std::fs::read(&file)?)?;
        (self.base_url, self.token) = (dev.base_url, dev.token);
        (self.org, self.secret) = (dev.organization_id, dev.signing_secret);
        self.with("REDIAL_DATABASE__URL", format!("sqlite:{}", data.join("redial.db").display())).answering()
    }

    /// Starts an api and dispatchers.
    fn with_services(mut self, dispatchers: usize) -> Result<Installation> {
        let given = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        let server = given("DATABASE_URL", SERVER);
        let name = format!("redial_bench_{}", Uuid::new_v4().simple());
        psql(&server, &format!("CREATE DATABASE {name}"))?;
        let url = in_database(&server, &name)?;
        self.server = Some((server, name));
        let (broker, queue) =
            (given("AMQP_URL", BROKER), format!("redial.bench.{}", Uuid::new_v4().simple()));
        self.broker = Some(Broker::parse(&broker, &queue)?);
        let listen = free_address()?;
        self = self
            .with("REDIAL_DATABASE__URL", url)
            .with("REDIAL_BROKER__URL", broker)
            .with("REDIAL_BROKER__QUEUE", queue)
            .with("REDIAL_SECRETS__KEYS", KEY.into())
            .with("REDIAL_API__LISTEN", listen.to_string());
        self.base_url = format!("http://{listen}");
        self.command(&["migrate"])?;
        self.org = self.command(&["org", "create", "bench"])?;
        self.token = self.command(&["token", "create", "--org", &self.org])?;
        self.secret = self.command(&["secret", "create", "--org", &self.org])?;
        self.api = Some(Process::start(&mut self.redial(&["api"]))?);
        self.scale(dispatchers)?;
        self.answering()
    }

    /// Starts dispatchers, or asks the newest ones to end, until there are `replicas`.
    pub(crate) fn scale(&mut self, replicas: usize) -> Result<()> {
        while self.dispatchers.len() < replicas {
            let metrics = free_address()?;
            let mut command = self.redial(&["dispatcher"]);
            let process = Process::start(command.env("REDIAL_METRICS__LISTEN", metrics.to_string()))?;
            self.dispatchers.push(Dispatcher { process, metrics: Some(metrics) });
        }
        for Dispatcher { process, .. } in self.dispatchers.drain(replicas..) {
            process.signal(Signal::TERM)?;
            self.leaving.push(process);
        }
        Ok(())
    }

    /// Returns the number of dispatchers, without those that are leaving.
    pub(crate) fn dispatchers(&self) -> usize {
        self.dispatchers.len()
    }

    /// Returns the URL of a dispatcher's `GET /scaling`, of each dispatcher in turn.
    pub(crate) fn scaling_url(&self, turn: usize) -> String {
        let metrics = self.dispatchers.iter().cycle().nth(turn).and_then(|dispatcher| dispatcher.metrics);
        metrics.map_or(String::new(), |address| format!("http://{address}/scaling"))
    }

    fn with(mut self, name: &'static str, value: String) -> Installation {
        self.environment.push((name, value));
        self
    }

    /// Waits until the api accepts connections.
    fn answering(self) -> Result<Installation> {
        let address: SocketAddr = self.base_url.trim_start_matches("http://").parse()?;
        until("the api answers", || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(self)
    }

    fn redial(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command.current_dir(self.directory.path());
        command
    }

    /// Runs a command to its end and returns its output.
    fn command(&self, arguments: &[&str]) -> Result<String> {
        let output = self.redial(arguments).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "redial {} failed", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Records ended runs without automatic deliveries, with the URLs in turn. Returns their ids.
    pub(crate) fn import(&self, count: usize, payload: usize, urls: &[String]) -> Result<Vec<String>> {
        let filler = "x".repeat(payload.saturating_sub(270)); // size of a payload without its output's text
        let runs: Vec<String> = (0..count).map(|_| Uuid::new_v4().to_string()).collect();
        let file = self.directory.path().join("runs.jsonl");
        let mut out = BufWriter::new(File::create(&file)?);
        for (run, url) in runs.iter().zip(urls.iter().cycle()) {
            writeln!(
                out,
                r#"{{"id":"{run}","status_code":"succeeded","output":{{"text":"{filler}"}},"duration_ms":1234,"callback_url":"{url}","metadata":{{}}}}"#
            )?;
        }
        out.into_inner()?.sync_data()?;
        self.command(&["runs", "import", text(&file)?, "--org", &self.org])?;
        Ok(runs)
    }

    pub(crate) fn base_url(&self) -> &str {
        &self.base_url
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Runs statements on the database and returns the rows of the last one.
    pub(crate) fn query(&self, statements: &str) -> Result<String> {
        let (server, name) = self.server.as_ref().context("queries require PostgreSQL")?;
        psql(&in_database(server, name)?, statements)
    }

    /// Runs a checkpoint, so that no measurement pays for the pages of the previous one and each pays for its
    /// own first writes.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        if self.server.is_some() {
            self.query("CHECKPOINT")?;
        }
        Ok(())
    }

    /// Returns the usage of all parts so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let id = |process: &Process| process.id().cast_signed();
        let processes = Processes {
            api: self.api.iter().map(id).collect(),
            dispatchers: self.dispatchers.iter().map(|running| id(&running.process)).collect::<BTreeSet<_>>(),
        };
        let (wal, transactions) = match self.server {
            Some(_) => {
                let counted = self.query(
                    "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint || ' ' || xact_commit FROM pg_stat_database
                     WHERE datname = current_database()",
                )?;
                let (wal, transactions) = counted.trim().split_once(' ').context("expected two numbers")?;
                (Some(wal.parse()?), Some(transactions.parse()?))
            }
            None => (None, None),
        };
        processes.usage(wal, transactions)
    }

    /// Returns the peak memory of the api, then of the dispatchers.
    pub(crate) fn peak_memory(&self) -> Result<Vec<u64>> {
        let dispatchers = self.dispatchers.iter().map(|running| &running.process);
        self.api.iter().chain(dispatchers).map(|process| Ok(process.memory()?.peak)).collect()
    }

    /// Stops all processes and deletes the queues. Fails if a service exits with an error.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let mut ended = Ok(());
        self.scale(0)?;
        if let Some(api) = self.api.take() {
            api.signal(Signal::TERM)?;
            self.leaving.push(api);
        }
        for mut process in self.leaving.drain(..) {
            let status = process.wait()?;
            if !status.success() {
                ended = Err(anyhow::anyhow!("a service ended with {status}"));
            }
        }
        if let Some(broker) = self.broker.take() {
            broker.delete_queues().await?;
        }
        ended
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Before their database.
        self.dispatchers.clear();
        self.leaving.clear();
        self.api = None;
        if let Some((server, name)) = &self.server {
            let _ = psql(server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

/// Returns an address of this host that is free now.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is not UTF-8")
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT.min(Duration::from_secs(60));
    while !is_so()? {
        ensure!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// Returns the URL of a database on the same server.
fn in_database(server: &str, name: &str) -> Result<String> {
    let (place, query) =
        server.split_once('?').map_or((server, String::new()), |(place, query)| (place, format!("?{query}")));
    let Some((place, _)) = place.rsplit_once('/').filter(|(place, _)| !place.ends_with('/')) else {
        bail!("DATABASE_URL names no database")
    };
    Ok(format!("{place}/{name}{query}"))
}

/// Runs statements with `psql`.
fn psql(url: &str, statements: &str) -> Result<String> {
    let output = Command::new("psql")
        .args(["-qAtXw", "-v", "ON_ERROR_STOP=1", url, "-c", statements])
        .env("PGOPTIONS", "-c client_min_messages=error") // VACUUM warns about tables of other owners
        .stderr(Stdio::inherit())
        .output()
        .context("psql can't be started")?;
    ensure!(output.status.success(), "a statement failed");
    Ok(String::from_utf8(output.stdout)?)
}

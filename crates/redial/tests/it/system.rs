//! A complete installation: processes of the real binary on real servers, with a receiver that records every
//! callback.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use contracts::{RunId, SigningSecret};
use queue::Broker;
use receiver::{Received, Receiver};
use serde_json::Value;
use testkit::{Backend, Signal, TestDatabase};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// Longer than anything here takes; only a failing test reaches it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct System {
    pub(crate) apis: Vec<Process>,
    pub(crate) dispatchers: Vec<Process>,
    pub(crate) receiver: Receiver,
    pub(crate) arrivals: UnboundedReceiver<Received>,
    pub(crate) org: String,
    pub(crate) token: String,
    pub(crate) secret: String,
    pub(crate) queue: String,
    broker_url: String,
    environment: Vec<(String, String)>,
    /// Combined log of all services.
    pub(crate) logs: Arc<Mutex<String>>,
    pub(crate) http: reqwest::Client,
    pub(crate) database: TestDatabase,
}

/// A process of the real binary, killed when dropped.
pub(crate) struct Process {
    child: testkit::Process,
    /// Its HTTP address, if it serves HTTP.
    pub(crate) address: Option<SocketAddr>,
}

/// Returns the URL of the broker that tests share.
pub(crate) fn shared_broker() -> String {
    std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".into())
}

impl System {
    /// Sets up an installation with the administrative commands and starts the services. `settings` are
    /// additional environment variables.
    pub(crate) fn start(
        broker_url: &str,
        apis: usize,
        dispatchers: usize,
        settings: &[(&str, &str)],
    ) -> System {
        let database = TestDatabase::empty(Backend::Postgres);
        let queue = format!("redial.test.{}", Uuid::new_v4().simple());
        let store::DatabaseUrl::Postgres(database_url) = database.url() else {
            unreachable!("requested above")
        };
        let own = [
            ("REDIAL_DATABASE__URL", database_url.as_str()),
            ("REDIAL_BROKER__URL", broker_url),
            ("REDIAL_BROKER__QUEUE", &queue),
            ("REDIAL_API__LISTEN", "127.0.0.1:0"),
            ("REDIAL_EGRESS__ALLOW", "127.0.0.0/8"),
            ("REDIAL_SECRETS__KEYS", "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("REDIAL_LOG__FORMAT", "json"),
        ];
        let environment =
            own.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (sink, arrivals) = unbounded_channel();
        let receiver = Receiver::bind(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            receiver::Options { sink: Some(sink), ..Default::default() },
        )
        .unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut system = System {
            apis: Vec::new(),
            dispatchers: Vec::new(),
            receiver,
            arrivals,
            org: String::new(),
            token: String::new(),
            secret: String::new(),
            queue,
            broker_url: broker_url.to_owned(),
            environment,
            logs: Arc::default(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            database,
        };
        system.command(&["migrate"]);
        system.org = system.command(&["org", "create", "test"]);
        system.token = system.command(&["token", "create", "--org", &system.org]);
        system.secret = system.command(&["secret", "create", "--org", &system.org]);
        system.receiver.add_secret(SigningSecret::parse(&system.secret).unwrap());
        system.apis = (0..apis).map(|_| system.service("api")).collect();
        for _ in 0..dispatchers {
            system.add_dispatcher();
        }
        system
    }

    /// Runs a command to its end and returns its standard output.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let output = self.redial(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a service that must fail to start, and returns its standard error.
    pub(crate) fn refused(&self, service: &str) -> String {
        let output = self.redial(&[service]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn add_dispatcher(&mut self) {
        let dispatcher = self.service("dispatcher");
        self.dispatchers.push(dispatcher);
    }

    /// Starts a dispatcher that reads its keys from a configuration file.
    pub(crate) fn add_dispatcher_with(&mut self, config: &Path) {
        let mut command = self.redial(&["dispatcher", "--config", config.to_str().unwrap()]);
        command.env_remove("REDIAL_SECRETS__KEYS");
        let dispatcher = self.start_service("dispatcher", command);
        self.dispatchers.push(dispatcher);
    }

    /// Sets an environment variable for processes started afterwards.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn redial(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redial"));
        command.args(arguments).envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Starts a service and waits until it logs that it is running.
    fn service(&self, name: &str) -> Process {
        self.start_service(name, self.redial(&[name]))
    }

    fn start_service(&self, name: &str, mut command: Command) -> Process {
        let mut child = testkit::Process::start(command.stderr(Stdio::piped())).unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (started, address) = mpsc::channel();
        let logs = self.logs.clone();
        // Read to the end, or the process would block on a full pipe.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                logs.lock().unwrap().push_str(&line);
                let Ok(line) = serde_json::from_str::<Value>(&line) else { panic!("not a log line: {line}") };
                match line["message"].as_str() {
                    Some("serving the API") => {
                        let _ = started.send(line["listen"].as_str().map(|text| text.parse().unwrap()));
                    }
                    Some("dispatching") => {
                        let _ = started.send(None);
                    }
                    _ => {}
                }
            }
        });
        let address =
            address.recv_timeout(TIMEOUT).unwrap_or_else(|_| panic!("redial {name} does not start"));
        Process { child, address }
    }

    /// Imports runs made by `examples/make_runs.py` and returns `count` that can be redelivered.
    pub(crate) fn import_runs(&self, count: usize, path: &str) -> Vec<RunId> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("runs.jsonl");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/make_runs.py");
        // About one run in six has not ended or has no URL.
        let made = Command::new("python3")
            .args([
                script,
                "--count",
                &(count * 3 / 2 + 8).to_string(),
                "--callback-url",
                &self.receiver.url(path),
            ])
            .arg("--output")
            .arg(&file)
            .status()
            .expect("tests need python3");
        assert!(made.success());
        self.command(&["runs", "import", file.to_str().unwrap(), "--org", &self.org]);
        let lines = std::fs::read_to_string(&file).unwrap();
        let runs = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let terminal = runs.filter(|run| {
            !matches!(run["status_code"].as_str(), Some("queued" | "dispatching" | "running"))
                && run["callback_url"].is_string()
        });
        let ids: Vec<RunId> =
            terminal.map(|run| run["id"].as_str().unwrap().parse().unwrap()).take(count).collect();
        assert_eq!(ids.len(), count);
        ids
    }

    /// Requests a redelivery from the api with that index and returns the delivery.
    pub(crate) async fn redeliver(&self, api: usize, run: RunId) -> Value {
        let path = format!("/v1/runs/{run}/callback-redeliveries");
        let response = self.http.post(self.url(api, &path)).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(response.status(), 201);
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    /// Requests redeliveries of all runs, 16 at a time, from the apis in turn.
    pub(crate) async fn redeliver_all(&self, runs: &[RunId]) -> Vec<Value> {
        use futures_util::StreamExt;
        let ask = |(n, run): (usize, &RunId)| self.redeliver(n % self.apis.len(), *run);
        futures_util::stream::iter(runs.iter().enumerate().map(ask)).buffer_unordered(16).collect().await
    }

    pub(crate) async fn delivery(&self, id: &str) -> Value {
        let url = self.url(0, &format!("/v1/callback-deliveries/{id}"));
        let response = self.http.get(url).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(response.status(), 200);
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    /// Polls the delivery until it has ended, and returns it.
    pub(crate) async fn settled(&self, id: &str) -> Value {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let delivery = self.delivery(id).await;
            if !delivery["completed_at"].is_null() {
                return delivery;
            }
            assert!(Instant::now() < deadline, "not settled: {delivery}");
        }
    }

    /// Waits for `count` callbacks and returns them.
    pub(crate) async fn gather(&mut self, count: usize) -> Vec<Received> {
        let deadline = Instant::now() + TIMEOUT;
        let mut arrived = Vec::new();
        while arrived.len() < count {
            let next = timeout_at(deadline, self.arrivals.recv()).await;
            arrived
                .push(next.unwrap_or_else(|_| panic!("only {} of {count} arrived", arrived.len())).unwrap());
        }
        arrived
    }

    pub(crate) fn add_api(&mut self) {
        let api = self.service("api");
        self.apis.push(api);
    }

    pub(crate) fn url(&self, api: usize, path: &str) -> String {
        format!("http://{}{path}", self.apis[api].address.unwrap())
    }

    /// Stops all services with SIGTERM, deletes the queues, and returns the callbacks that were not gathered.
    pub(crate) async fn stop(mut self) -> Vec<Received> {
        for process in self.apis.drain(..).chain(self.dispatchers.drain(..)) {
            process.stop();
        }
        Broker::parse(&self.broker_url, &self.queue).unwrap().delete_queues().await.unwrap();
        let mut rest = Vec::new();
        while let Ok(received) = self.arrivals.try_recv() {
            rest.push(received);
        }
        drop(self.database);
        rest
    }
}

impl Process {
    /// Sends SIGTERM; the process must exit with status 0.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "ended with {status}");
    }

    /// Waits until the process exits and returns its exit status.
    pub(crate) fn ended(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal).unwrap();
    }
}

/// Groups callbacks by `webhook-id`.
pub(crate) fn by_delivery(arrived: Vec<Received>) -> HashMap<String, Vec<Received>> {
    let mut sorted: HashMap<String, Vec<Received>> = HashMap::new();
    for received in arrived {
        let id = received.header("webhook-id").expect("every callback has a webhook-id").to_owned();
        sorted.entry(id).or_default().push(received);
    }
    sorted
}

//! A RabbitMQ node per test, or a cluster, which can be killed, restarted and purged without disturbing other
//! tests.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::free_port;

/// Directory of the programs in Debian's package. Those on the PATH require the service's own user.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// Start timeout; a node starts within seconds, also on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(90);

/// A node with its own port and directory. When dropped, it is killed and its directory removed.
pub struct RabbitNode {
    /// Holds the cookie by which the nodes of a cluster know each other, and a directory for each of them.
    home: Arc<TempDir>,
    name: String,
    port: u16,
    distribution_port: u16,
    process: Child,
}

impl RabbitNode {
    /// Starts a node and waits until it is up.
    pub fn start() -> RabbitNode {
        Self::start_in(Arc::new(tempfile::tempdir().expect("a temporary directory")))
    }

    /// Starts nodes that form a cluster.
    pub fn start_cluster(count: usize) -> Vec<RabbitNode> {
        let first = Self::start();
        let mut nodes = vec![first];
        for _ in 1..count {
            let node = Self::start_in(nodes[0].home.clone());
            node.command(&["stop_app"]);
            node.command(&["join_cluster", &nodes[0].name]);
            node.command(&["start_app"]);
            nodes.push(node);
        }
        nodes
    }

    fn start_in(home: Arc<TempDir>) -> RabbitNode {
        let (port, distribution_port) = (free_port(), free_port());
        let name = format!("redial-test-{port}@localhost");
        let process = spawn(home.path(), &name, port, distribution_port);
        let node = RabbitNode { home, name, port, distribution_port, process };
        node.wait();
        node
    }

    /// Returns the node's name in its cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the node's AMQP URL.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Kills the node with SIGKILL.
    pub fn kill(&mut self) {
        let group = format!("-{}", self.process.id());
        // It may already be dead.
        let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        self.process.wait().expect("the node's process can be waited for");
    }

    /// Restarts the node after [`RabbitNode::kill`], in the same directory, and waits until it is up.
    pub fn restart(&mut self) {
        self.process = spawn(self.home.path(), &self.name, self.port, self.distribution_port);
        self.wait();
    }

    /// Deletes all messages of a queue.
    pub fn purge(&self, queue: &str) {
        self.command(&["purge_queue", queue]);
    }

    /// Runs a `rabbitmqctl` command on the node and returns its standard output.
    pub fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).unwrap_or_else(|why| panic!("rabbitmqctl {arguments:?}: {why}"))
    }

    /// Like [`RabbitNode::command`], but returns standard error if the command fails.
    pub fn try_command(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.control(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn wait(&self) {
        let deadline = Instant::now() + TIMEOUT;
        // `await_startup` waits for the node, but fails at once while its process is not reachable.
        while !self.control(&["await_startup", "--timeout", "60"]).status.success() {
            assert!(Instant::now() < deadline, "the RabbitMQ node {} does not start", self.name);
        }
    }

    fn control(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(format!("{PROGRAMS}/rabbitmqctl"));
        command.args(["--quiet", "-n", &self.name]).args(arguments).env("HOME", self.home.path());
        command.output().expect("tests need Debian's package rabbitmq-server")
    }
}

impl Drop for RabbitNode {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(home: &Path, name: &str, port: u16, distribution_port: u16) -> Child {
    let directory = home.join(port.to_string());
    std::fs::create_dir_all(&directory).expect("the node's directory can be made");
    let plugins = directory.join("enabled_plugins");
    std::fs::write(&plugins, "[].").expect("the node's directory can be written");
    Command::new(format!("{PROGRAMS}/rabbitmq-server"))
        .env("HOME", home)
        .env("RABBITMQ_NODENAME", name)
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
        .env("RABBITMQ_MNESIA_BASE", &directory)
        .env("RABBITMQ_LOG_BASE", &directory)
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins)
        .env("RABBITMQ_CONFIG_FILE", directory.join("none"))
        .env("RABBITMQ_CONF_ENV_FILE", directory.join("none"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("tests need Debian's package rabbitmq-server")
}

//! A RabbitMQ node of a test's own, to be killed, restarted and purged without disturbing anybody else's.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Where Debian's package has the programs; the ones on the PATH insist on the service's own user.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// A node starts within seconds, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(90);

/// A node on a private port and directory. Killed, with its directory, when dropped.
pub struct RabbitNode {
    directory: TempDir,
    name: String,
    port: u16,
    distribution_port: u16,
    process: Child,
}

impl RabbitNode {
    /// Starts one and waits until it answers.
    pub fn start() -> RabbitNode {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (port, distribution_port) = (free_port(), free_port());
        let name = format!("redial-test-{port}@localhost");
        let process = spawn(directory.path(), &name, port, distribution_port);
        let node = RabbitNode { directory, name, port, distribution_port, process };
        node.wait();
        node
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let group = format!("-{}", self.process.id());
        // It may be dead already.
        let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        self.process.wait().expect("the node's process can be waited for");
    }

    /// Starts it again after [`RabbitNode::kill`], on the same directory, and waits until it answers.
    pub fn restart(&mut self) {
        self.process = spawn(self.directory.path(), &self.name, self.port, self.distribution_port);
        self.wait();
    }

    /// Throws away what is in a queue.
    pub fn purge(&self, queue: &str) {
        self.command(&["purge_queue", queue]);
    }

    /// Runs a command of `rabbitmqctl` on it, and answers what it prints.
    pub fn command(&self, arguments: &[&str]) -> String {
        self.try_command(arguments).unwrap_or_else(|why| panic!("rabbitmqctl {arguments:?}: {why}"))
    }

    /// The same, or what it complains of.
    pub fn try_command(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.control(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn wait(&self) {
        let deadline = Instant::now() + PATIENCE;
        // One call waits for the node's start; the calls before its process can be reached fail at once.
        while !self.control(&["await_startup", "--timeout", "60"]).status.success() {
            assert!(Instant::now() < deadline, "the RabbitMQ node {} does not start", self.name);
        }
    }

    fn control(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(format!("{PROGRAMS}/rabbitmqctl"));
        command.args(["--quiet", "-n", &self.name]).args(arguments).env("HOME", self.directory.path());
        command.output().expect("tests need Debian's package rabbitmq-server")
    }
}

impl Drop for RabbitNode {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(directory: &Path, name: &str, port: u16, distribution_port: u16) -> Child {
    let plugins = directory.join("enabled_plugins");
    std::fs::write(&plugins, "[].").expect("the node's directory can be written");
    Command::new(format!("{PROGRAMS}/rabbitmq-server"))
        .env("HOME", directory)
        .env("RABBITMQ_NODENAME", name)
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_DIST_PORT", distribution_port.to_string())
        .env("RABBITMQ_MNESIA_BASE", directory)
        .env("RABBITMQ_LOG_BASE", directory)
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

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

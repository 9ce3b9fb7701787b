//! A private PostgreSQL cluster that can be crashed, frozen, killed and restarted, and its synchronous
//! standby.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::process::free_port;

/// A cluster on a private port and directory. Dropping it kills the cluster and deletes the directory.
pub struct Cluster {
    directory: TempDir,
    programs: PathBuf,
    port: u16,
}

/// Shared memory in files of the directory, so that a killed cluster leaves none behind. A standby is made
/// with its primary's settings, and waits for no standby of its own until it has one.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'
max_connections = 200
fsync = on
synchronous_commit = on
dynamic_shared_memory_type = mmap
synchronous_standby_names = ''
";
/// Replication slot of the standby.
const SLOT: &str = "standby";
/// How long processes and a standby may take for what is asked of them.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Cluster {
    /// Creates and starts a cluster.
    pub fn start() -> io::Result<Cluster> {
        let cluster = Cluster::place(free_port())?;
        cluster.run("initdb", &["-D", &cluster.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8"])?;
        cluster.configure()?;
        cluster.resume()?;
        Ok(cluster)
    }

    /// Creates and starts a standby on `port`. When this returns, the standby has everything that this
    /// cluster has committed, and each further commit waits until the standby has it. A cluster can have one
    /// standby in its life.
    pub fn standby(&self, port: u16) -> io::Result<Cluster> {
        let standby = Cluster::place(port)?;
        let (data, primary) = (standby.data(), self.port.to_string());
        let from = ["-h", "127.0.0.1", "-p", &primary, "-U", "postgres", "--checkpoint", "fast", "--no-sync"];
        let slot = ["--create-slot", "--slot", SLOT, "--write-recovery-conf", "-D", &data];
        standby.run("pg_basebackup", &[from.as_slice(), &slot].concat())?;
        standby.configure()?;
        standby.resume()?;
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'")?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        let deadline = Instant::now() + TIMEOUT;
        while self.sql("postgres", "SELECT sync_state FROM pg_stat_replication")? != "sync" {
            ensure(Instant::now() < deadline, "the standby does not become synchronous")?;
        }
        // Waits for the standby, and so for everything committed earlier.
        self.sql("postgres", "SELECT pg_logical_emit_message(true, 'synchronous', '')")?;
        Ok(standby)
    }

    fn place(port: u16) -> io::Result<Cluster> {
        let directory = tempfile::tempdir()?;
        if geteuid().is_root() {
            // PostgreSQL refuses to run as root.
            std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
            succeeded("chown", &Command::new("chown").arg("postgres").arg(directory.path()).output()?)?;
        }
        Ok(Cluster { directory, programs: programs()?, port })
    }

    /// Adds this cluster's settings, which override those of a primary.
    fn configure(&self) -> io::Result<()> {
        let file = PathBuf::from(self.data()).join("postgresql.auto.conf");
        let sockets = self.directory.path().display();
        let mut file = OpenOptions::new().append(true).open(file)?;
        write!(file, "{SETTINGS}port = {}\nunix_socket_directories = '{sockets}'\n", self.port)
    }

    fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}:{}/{database}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// Stops all processes at once, without a checkpoint, like a crash.
    pub fn crash(&self) -> io::Result<()> {
        self.run("pg_ctl", &["stop", "-D", &self.data(), "-m", "immediate"])
    }

    /// Starts the cluster and waits until it is ready.
    pub fn resume(&self) -> io::Result<()> {
        let log = self.directory.path().join("log").display().to_string();
        self.run("pg_ctl", &["start", "-w", "-D", &self.data(), "-l", &log])
    }

    /// Makes a primary of a standby, and waits until it is one.
    pub fn promote(&self) -> io::Result<()> {
        ensure(self.sql("postgres", "SELECT pg_promote()")? == "t", "the standby was not promoted in time")
    }

    /// Stops all processes with SIGSTOP: the kernel keeps their connections open and accepts new ones, and
    /// none gets a response.
    pub fn freeze(&self) -> io::Result<()> {
        // The main process first, so that there are no more processes afterwards.
        signal(&self.main_process()?, Signal::STOP)?;
        self.processes()?.iter().try_for_each(|process| signal(process, Signal::STOP))
    }

    /// Kills all processes with SIGKILL, and waits until they have ended.
    pub fn kill(&self) -> io::Result<()> {
        let processes = self.processes()?;
        processes.iter().try_for_each(|process| signal(process, Signal::KILL))?;
        let deadline = Instant::now() + TIMEOUT;
        // Their parent, if it is not the main process, reaps them when it likes.
        while processes.iter().any(|process| process.stat().is_ok_and(|stat| stat.state != 'Z')) {
            ensure(Instant::now() < deadline, "the killed processes don't end")?;
            std::thread::yield_now();
        }
        // Otherwise this little segment would outlive the directory.
        if let Some(segment) = std::fs::read_to_string(self.pid_path())?
            .lines()
            .nth(6)
            .and_then(|line| line.split_whitespace().nth(1))
        {
            succeeded("ipcrm", &Command::new("ipcrm").args(["-m", segment]).output()?)?;
        }
        // Its pid may be given to another process, which must not be killed in turn.
        std::fs::remove_file(self.pid_path())
    }

    fn pid_path(&self) -> PathBuf {
        PathBuf::from(self.data()).join("postmaster.pid")
    }

    fn main_process(&self) -> io::Result<procfs::process::Process> {
        let pid = std::fs::read_to_string(self.pid_path())?.lines().next().and_then(|pid| pid.parse().ok());
        let pid = pid.ok_or_else(|| io::Error::other("postmaster.pid has no pid"))?;
        procfs::process::Process::new(pid).map_err(io::Error::other)
    }

    /// Returns all processes, the main one first.
    fn processes(&self) -> io::Result<Vec<procfs::process::Process>> {
        let main = self.main_process()?;
        let parent = main.pid;
        let is_child =
            |process: &procfs::process::Process| process.stat().is_ok_and(|stat| stat.ppid == parent);
        let all = procfs::process::all_processes().map_err(io::Error::other)?;
        // A process may end while it is looked at.
        Ok([main].into_iter().chain(all.filter_map(Result::ok).filter(is_child)).collect())
    }

    /// Runs a statement and returns its output without a header.
    pub fn sql(&self, database: &str, statement: &str) -> io::Result<String> {
        let output = Command::new(self.programs.join("psql"))
            .args(["-qtAXw", "-v", "ON_ERROR_STOP=1", &self.url(database), "-c", statement])
            .output()?;
        succeeded("psql", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a statement in a separate session, which holds its locks until it is dropped.
    pub fn lock(&self, database: &str, statement: &str) -> io::Result<SessionLock> {
        const LOCKED: &str = "locked";
        let mut session = Command::new(self.programs.join("psql"))
            .args(["-qtAXw", "-v", "ON_ERROR_STOP=1", &self.url(database)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (session.stdin.as_mut(), session.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err(io::Error::other("no pipes")) };
        writeln!(input, "BEGIN;\n{statement};\n\\! echo {LOCKED}")?;
        // The output ends with the session, and a failed statement ends the session.
        let is_locked = BufReader::new(output).lines().map_while(|line| line.ok()).any(|line| line == LOCKED);
        let lock = SessionLock(session);
        ensure(is_locked, &format!("{statement} failed"))?;
        Ok(lock)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<()> {
        let program = self.programs.join(program);
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        // The server stays running and must not hold our output open.
        let status =
            command.args(arguments).current_dir("/").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure(status.success(), &format!("{} {arguments:?} ended with {status}", program.display()))
    }
}

/// A session with an open transaction, rolled back when dropped.
pub struct SessionLock(Child);

impl Drop for SessionLock {
    fn drop(&mut self) {
        // The server rolls back when its client disconnects.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Fails if the cluster is already stopped.
        let _ = self.kill();
    }
}

/// Returns the directory of the newest programs in Debian's package.
fn programs() -> io::Result<PathBuf> {
    let missing = || io::Error::other("needs Debian's package postgresql");
    let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path())).max();
    Ok(newest.ok_or_else(missing)?.join("bin"))
}

fn signal(process: &procfs::process::Process, signal: Signal) -> io::Result<()> {
    let pid = Pid::from_raw(process.pid).ok_or_else(|| io::Error::other("a process without a pid"))?;
    match kill_process(pid, signal) {
        Err(rustix::io::Errno::SRCH) => Ok(()), // it has ended
        sent => Ok(sent?),
    }
}

fn ensure(holds: bool, otherwise: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(io::Error::other(otherwise)) }
}

fn succeeded(what: &str, output: &Output) -> io::Result<()> {
    ensure(output.status.success(), &format!("{what}: {}", String::from_utf8_lossy(&output.stderr)))
}

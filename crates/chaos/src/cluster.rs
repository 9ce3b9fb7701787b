//! A private PostgreSQL cluster that can be crashed and restarted.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::ports::free_port;

/// A cluster on a private port and directory. Dropping it stops the cluster and deletes the directory.
pub(crate) struct Cluster {
    directory: TempDir,
    programs: PathBuf,
    port: u16,
}

const SETTINGS: &str =
    "listen_addresses = '127.0.0.1'\nmax_connections = 200\nfsync = on\nsynchronous_commit = on\n";

impl Cluster {
    /// Creates and starts a cluster.
    pub(crate) fn start() -> Result<Cluster> {
        let directory = tempfile::tempdir()?;
        let cluster = Cluster { directory, programs: programs()?, port: free_port()? };
        if is_root()? {
            // PostgreSQL refuses to run as root.
            std::fs::set_permissions(cluster.directory.path(), std::fs::Permissions::from_mode(0o755))?;
            let path = cluster.directory.path().display().to_string();
            done("chown", &Command::new("chown").args(["postgres", &path]).output()?)?;
        }
        let data = cluster.data();
        cluster.run("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8"])?;
        let file = PathBuf::from(&data).join("postgresql.auto.conf");
        let sockets = cluster.directory.path().display();
        let settings = format!("{SETTINGS}port = {}\nunix_socket_directories = '{sockets}'\n", cluster.port);
        std::fs::write(file, settings)?;
        cluster.resume()?;
        Ok(cluster)
    }

    fn data(&self) -> String {
        self.directory.path().join("data").display().to_string()
    }

    /// Returns the URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Stops all processes at once, without a checkpoint, like a crash.
    pub(crate) fn crash(&self) -> Result<()> {
        self.run("pg_ctl", &["stop", "-D", &self.data(), "-m", "immediate"])
    }

    /// Starts the cluster and waits until it is ready.
    pub(crate) fn resume(&self) -> Result<()> {
        let log = self.directory.path().join("log").display().to_string();
        self.run("pg_ctl", &["start", "-w", "-D", &self.data(), "-l", &log])
    }

    /// Runs a statement and returns its output without a header.
    pub(crate) fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let output = Command::new(self.programs.join("psql"))
            .args(["-qtAXw", "-v", "ON_ERROR_STOP=1", &self.url(database), "-c", statement])
            .output()?;
        done("psql", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a statement in a separate session, which holds its locks until it is dropped.
    pub(crate) fn lock(&self, database: &str, statement: &str) -> Result<Lock> {
        const LOCKED: &str = "locked";
        let mut session = Command::new(self.programs.join("psql"))
            .args(["-qtAXw", "-v", "ON_ERROR_STOP=1", &self.url(database)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = session.stdin.as_mut().context("no input")?;
        writeln!(input, "BEGIN;\n{statement};\n\\! echo {LOCKED}")?;
        let output = session.stdout.take().context("no output")?;
        // The output ends with the session, and a failed statement ends the session.
        let is_locked = BufReader::new(output).lines().map_while(|line| line.ok()).any(|line| line == LOCKED);
        let lock = Lock(session);
        ensure!(is_locked, "{statement} failed");
        Ok(lock)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let program = self.programs.join(program);
        let mut command = match is_root()? {
            true => {
                let mut command = Command::new("runuser");
                command.args(["-u", "postgres", "--"]).arg(&program);
                command
            }
            false => Command::new(&program),
        };
        // The server stays running and must not hold our output open.
        let status = command
            .args(arguments)
            .current_dir("/")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()?;
        ensure!(status.success(), "{} {arguments:?} ended with {status}", program.display());
        Ok(())
    }
}

/// A session with an open transaction.
pub(crate) struct Lock(Child);

impl Drop for Lock {
    fn drop(&mut self) {
        // The server rolls back when its client disconnects.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Fails if the cluster is already stopped.
        let _ = self.crash();
    }
}

/// Returns the directory of the newest programs in Debian's package.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("needs Debian's package postgresql")?;
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path())).max();
    Ok(newest.context("needs Debian's package postgresql")?.join("bin"))
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("-u").output()?;
    Ok(output.stdout.trim_ascii() == b"0")
}

fn done(what: &str, output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

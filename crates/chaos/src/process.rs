//! Processes of the real binary that can be killed, stopped and restarted.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How to start a process.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) binary: PathBuf,
    /// `api` or `dispatcher`.
    pub(crate) service: &'static str,
    /// Name of the process in logs.
    pub(crate) name: String,
    /// Address of its HTTP server.
    pub(crate) address: SocketAddr,
    pub(crate) environment: Vec<(String, String)>,
    /// Prefix command that executes the command after it, such as `prlimit --nofile=512`. May be empty.
    pub(crate) wrapper: Vec<String>,
    pub(crate) log: PathBuf,
}

/// A process, killed when dropped.
pub(crate) struct Process {
    pub(crate) recipe: Recipe,
    child: Child,
}

/// Timeout for a process to start or to end.
const PATIENCE: Duration = Duration::from_secs(60);

impl Process {
    /// Starts a process without waiting until it is ready.
    pub(crate) fn start(recipe: Recipe) -> Result<Process> {
        Self::start_with(recipe, &[])
    }

    /// Like [`Process::start`], with additional environment variables.
    pub(crate) fn start_with(recipe: Recipe, more: &[(&str, &str)]) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(&recipe.log)?;
        let mut words = recipe.wrapper.iter().map(OsStr::new).chain([recipe.binary.as_os_str()]);
        let child = Command::new(words.next().context("no program")?)
            .args(words)
            .arg(recipe.service)
            .envs(recipe.environment.iter().cloned())
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", recipe.binary.display()))?;
        Ok(Process { recipe, child })
    }

    /// Waits until the process answers health checks.
    pub(crate) async fn answers(&mut self, http: &reqwest::Client) -> Result<()> {
        let (url, deadline) = (self.url("/v1/health"), Instant::now() + PATIENCE);
        loop {
            if http.get(&url).send().await.is_ok_and(|response| response.status() == 200) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "{} ended with {ended:?}", self.recipe.name);
            ensure!(Instant::now() < deadline, "{} does not answer", self.recipe.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.recipe.address)
    }

    /// Sends a signal: `KILL`, `STOP`, `CONT` or `TERM`. Does nothing if the process has ended.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-s", signal, &pid]).stderr(Stdio::null()).status()?;
        Ok(())
    }

    /// Kills the process and starts it again.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.signal("KILL")?;
        self.child.wait()?;
        *self = Process::start(self.recipe.clone())?;
        Ok(())
    }

    /// Sends SIGTERM. Returns the exit status and the time until the exit.
    pub(crate) async fn terminate(&mut self) -> Result<(ExitStatus, Duration)> {
        let asked = Instant::now();
        self.signal("TERM")?;
        Ok((self.ended().await?, asked.elapsed()))
    }

    /// Waits until the process ends.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end", self.recipe.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the process has exited or was killed.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Whether the process is stopped by a signal (proc(5), "stat").
    pub(crate) fn is_stopped(&self) -> Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        Ok(stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['T', 't'])))
    }

    /// Returns the current and the peak resident memory, in MiB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let of = |name| {
            let line =
                status.lines().find_map(|line: &str| line.strip_prefix(name)).context("no such line")?;
            Ok::<f64, anyhow::Error>(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        Ok((of("VmRSS:")?, of("VmHWM:")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

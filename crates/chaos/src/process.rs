//! Processes of the real binary that can be killed, stopped and restarted.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::{Memory, Signal};

/// How to start a process.
#[derive(Clone, Debug)]
pub(crate) struct ProcessSpec {
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

/// A running process; killed when dropped.
pub(crate) struct Process {
    pub(crate) spec: ProcessSpec,
    child: testkit::Process,
}

/// Timeout for a process to start or to end.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Process {
    /// Starts a process without waiting until it is ready.
    pub(crate) fn start(spec: ProcessSpec) -> Result<Process> {
        Self::start_with(spec, &[])
    }

    /// Like [`Process::start`], with additional environment variables.
    pub(crate) fn start_with(spec: ProcessSpec, more: &[(&str, &str)]) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
        let mut words = spec.wrapper.iter().map(OsStr::new).chain([spec.binary.as_os_str()]);
        let mut command = Command::new(words.next().context("no program")?);
        command
            .args(words)
            .arg(spec.service)
            .envs(spec.environment.iter().cloned())
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = testkit::Process::start(&mut command)
            .with_context(|| format!("cannot start {}", spec.binary.display()))?;
        Ok(Process { spec, child })
    }

    /// Waits until the process answers health checks.
    pub(crate) async fn answers(&mut self, http: &reqwest::Client) -> Result<()> {
        let (url, deadline) = (self.url("/v1/health"), Instant::now() + TIMEOUT);
        loop {
            if http.get(&url).send().await.is_ok_and(|response| response.status() == 200) {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            ensure!(ended.is_none(), "{} ended with {ended:?}", self.spec.name);
            ensure!(Instant::now() < deadline, "{} does not answer", self.spec.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.spec.address)
    }

    /// Sends a signal. Does nothing if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(self.child.signal(signal)?)
    }

    /// Kills the process and starts it again.
    pub(crate) fn kill_and_restart(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        *self = Process::start(self.spec.clone())?;
        Ok(())
    }

    /// Sends SIGTERM. Returns the exit status and the time until the exit.
    pub(crate) async fn terminate(&mut self) -> Result<(ExitStatus, Duration)> {
        let asked = Instant::now();
        self.signal(Signal::TERM)?;
        Ok((self.ended().await?, asked.elapsed()))
    }

    /// Waits until the process ends.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end", self.spec.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the process has exited or was killed.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Whether a signal has stopped the process.
    pub(crate) fn is_stopped(&self) -> Result<bool> {
        Ok(self.child.is_stopped()?)
    }

    /// Returns the current and the peak resident memory, in MiB.
    pub(crate) fn memory(&self) -> Result<(f64, f64)> {
        let Memory { now, peak } = self.child.memory()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Ok((mib(now), mib(peak)))
    }

    /// Returns the number of open file descriptors.
    pub(crate) fn open_files(&self) -> Result<usize> {
        Ok(self.child.open_files()?)
    }
}

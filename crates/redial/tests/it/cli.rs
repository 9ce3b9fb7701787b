//! Runs the real binary in its own directory and environment.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use store::DatabaseUrl;
use tempfile::TempDir;
use testkit::{Process, Signal, TestDatabase};

/// A key for `secrets.keys`.
pub(crate) const KEY: &str = "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Directory and environment to run the binary in. The tests' own environment is not inherited.
pub(crate) struct Cli {
    directory: TempDir,
    environment: Vec<(String, String)>,
}

impl Cli {
    pub(crate) fn new() -> Cli {
        Cli { directory: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    pub(crate) fn on(database: &TestDatabase) -> Cli {
        let url = match database.url() {
            DatabaseUrl::Postgres(url) => url.clone(),
            DatabaseUrl::Sqlite(path) => format!("sqlite:{path}"),
        };
        Cli::new().with("DATABASE_URL", &url).with("REDIAL_SECRETS__KEYS", KEY)
    }

    /// Sets an environment variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Cli {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Returns the working directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_redial"));
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end and returns its exit status and output.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// Like [`Cli::run`], with `input` on standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// Runs a command that must succeed and returns its standard output, trimmed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        ended.stdout.trim().to_owned()
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        Running::start(&mut self.command(arguments))
    }
}

pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        Ended {
            code: output.status.code().expect("exited without a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A long-running process; killed when dropped.
pub(crate) struct Running(pub(crate) Process);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        Running(Process::start(command).unwrap())
    }

    /// Reads lines of standard output until one contains `wanted`, and returns it.
    pub(crate) fn printed(&mut self, wanted: &str) -> String {
        find(self.0.stdout.as_mut().unwrap(), wanted)
    }

    /// Reads lines of the log until one contains `wanted`, and returns it.
    pub(crate) fn logged(&mut self, wanted: &str) -> String {
        find(self.0.stderr.as_mut().unwrap(), wanted)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.0.signal(signal).unwrap();
    }

    /// Sends SIGTERM and returns the exit status.
    pub(crate) fn stop(self) -> i32 {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for the process to exit and returns its exit status.
    pub(crate) fn ended(mut self) -> i32 {
        // Further output must not block it.
        drop(self.0.stderr.take());
        std::io::copy(self.0.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
        self.0.wait().unwrap().code().expect("exited without a signal")
    }
}

/// Reads byte by byte, so that the bytes after the line are left for the next call.
fn find(stream: &mut impl std::io::Read, wanted: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        let read = BufReader::with_capacity(1, &mut *stream).read_line(&mut line).unwrap();
        assert!(read > 0, "ended without {wanted:?}: {seen}");
        if line.contains(wanted) {
            return line;
        }
        seen.push_str(&line);
    }
}

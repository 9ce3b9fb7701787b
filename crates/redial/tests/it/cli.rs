//! Runs the real binary, in a directory and an environment of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use store::DatabaseUrl;
use tempfile::TempDir;
use testkit::TestDatabase;

/// A key for `secrets.keys`.
pub(crate) const KEY: &str = "test:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// How the binary is run: nothing of the tests' own environment gets through.
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

    /// Sets a variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Cli {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The working directory.
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

    /// Runs a command to its end: its exit status, and what it printed and complained about.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.command(arguments).output().unwrap().into()
    }

    /// As [`Cli::run`], with that on standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> Ended {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    /// Runs a command that must succeed and answers what it printed, trimmed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        ended.stdout.trim().to_owned()
    }

    pub(crate) fn spawn(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).spawn().unwrap())
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
            code: output.status.code().expect("ended by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A process that stays up; killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Reads lines of standard output until one contains that.
    pub(crate) fn printed(&mut self, wanted: &str) -> String {
        find(self.0.stdout.as_mut().unwrap(), wanted)
    }

    /// Reads lines of the log until one contains that.
    pub(crate) fn logged(&mut self, wanted: &str) -> String {
        find(self.0.stderr.as_mut().unwrap(), wanted)
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Sends SIGTERM and answers the exit status.
    pub(crate) fn stop(self) -> i32 {
        self.signal("-TERM");
        self.ended()
    }

    /// Waits for the end and answers the exit status.
    pub(crate) fn ended(mut self) -> i32 {
        // Whatever it still says must not block it.
        drop(self.0.stderr.take());
        std::io::copy(self.0.stdout.as_mut().unwrap(), &mut std::io::sink()).unwrap();
        self.0.wait().unwrap().code().expect("ends by itself")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Byte by byte: what comes after the line is for the next one to look for.
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

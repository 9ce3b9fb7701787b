//! Chaos tests: injects faults into a real installation and checks the promises of ARCHITECTURE.md.
//!
//! The installation consists of a PostgreSQL cluster and a RabbitMQ node on private ports and directories,
//! real `redial` processes, and a receiver with an independent ledger. Each scenario ends with a verdict. Any
//! broken promise is a failure.

mod installation;
mod ledger;
mod limits;
mod load;
mod logs;
mod process;
mod report;
mod scenarios;
mod verdict;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use testkit::{Cluster, RabbitNode};
use tokio::signal::unix::{SignalKind, signal};

use crate::installation::Servers;
use crate::report::Finding;
use crate::scenarios::{LONG, SCENARIOS, Scenario};

/// Injects faults into a real installation and reports which promises were broken.
#[derive(Parser)]
struct Arguments {
    /// Names of the scenarios to run; by default all but `soak`.
    scenarios: Vec<String>,
    /// Path of the `redial` binary to test, built with the feature `failpoints`.
    #[arg(long)]
    binary: PathBuf,
    /// Directory of the report and the processes' logs.
    #[arg(long, default_value = "target/chaos", overrides_with = "directory")]
    directory: PathBuf,
    /// Factor of the full size, for the numbers of deliveries and faults and for durations.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Duration of the storm in minutes; 7 times the scale by default.
    #[arg(long)]
    minutes: Option<f64>,
    /// Duration of the soak in hours; 2 times the scale by default.
    #[arg(long)]
    hours: Option<f64>,
    /// Seed of the storm's random faults and of the soak's load.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Size of a run.
pub(crate) struct Scale {
    factor: f64,
    minutes: Option<f64>,
    hours: Option<f64>,
    seed: u64,
    bar: ProgressBar,
    /// Elapsed time at which the next progress line is printed if there is no terminal.
    next_line: Mutex<Duration>,
}

const LINE_EVERY: Duration = Duration::from_secs(10);

impl Scale {
    /// Returns `count` scaled, at least 1.
    pub(crate) fn of(&self, count: usize) -> usize {
        ((count as f64 * self.factor).round() as usize).max(1)
    }

    /// Returns the duration of the storm.
    pub(crate) fn storm(&self) -> Duration {
        Duration::from_secs_f64(60.0 * self.minutes.unwrap_or(7.0 * self.factor))
    }

    /// Returns the duration of the soak.
    pub(crate) fn soak(&self) -> Duration {
        Duration::from_secs_f64(3600.0 * self.hours.unwrap_or(2.0 * self.factor))
    }

    /// Shows progress. Without a terminal it prints at most one line per [`LINE_EVERY`].
    pub(crate) fn say(&self, message: impl Into<String>) {
        let message = message.into();
        if self.bar.is_hidden() {
            let elapsed = self.bar.elapsed();
            let mut next_line = self.next_line.lock();
            if elapsed >= *next_line {
                *next_line = elapsed + LINE_EVERY;
                // Best effort: progress output may fail.
                let _ =
                    writeln!(std::io::stderr(), "{} {} s: {message}", self.bar.prefix(), elapsed.as_secs());
            }
        }
        self.bar.set_message(message);
    }
}

/// Waits for SIGINT or SIGTERM.
async fn stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

// Some scenarios block their worker thread.
#[tokio::main(worker_threads = 6)]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    // Fails only if a provider is already installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wanted: Vec<&Scenario> = match arguments.scenarios.as_slice() {
        [] => SCENARIOS.iter().collect(),
        names => {
            let find = |name: &String| {
                let all = || SCENARIOS.iter().chain(LONG);
                let known = || all().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
                let found = all().find(|scenario| scenario.name == name);
                found.with_context(|| format!("unknown scenario {name}; scenarios are {}", known()))
            };
            names.iter().map(find).collect::<Result<_>>()?
        }
    };
    std::fs::create_dir_all(&arguments.directory)?;
    let binary = arguments.binary.canonicalize().context("--binary")?;
    let mut out = std::io::stdout();
    writeln!(out, "starting a PostgreSQL cluster and a RabbitMQ node")?;
    let mut servers = Servers {
        cluster: Cluster::start()?,
        node: tokio::task::spawn_blocking(RabbitNode::start).await?,
        binary,
        directory: arguments.directory.canonicalize()?,
    };
    let mut stopped = std::pin::pin!(stop());
    let mut findings = Vec::new();
    for scenario in wanted {
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {msg}")?;
        let bar = ProgressBar::new_spinner().with_style(style).with_prefix(scenario.name);
        bar.enable_steady_tick(Duration::from_millis(200));
        let scale = Scale {
            factor: arguments.scale,
            minutes: arguments.minutes,
            hours: arguments.hours,
            seed: arguments.seed,
            bar: bar.clone(),
            next_line: Mutex::default(),
        };
        let began = Instant::now();
        // Dropping the scenario ends the processes that it has started.
        let outcome = tokio::select! {
            outcome = (scenario.run)(&mut servers, &scale) => outcome,
            stopped = &mut stopped => {
                bar.finish_and_clear();
                stopped?;
                anyhow::bail!("stopped in {}", scenario.name);
            }
        };
        bar.finish_and_clear();
        let mut finding = Finding {
            title: format!("{}: {}", scenario.name, scenario.title),
            rows: Vec::new(),
            broken: Vec::new(),
            seconds: began.elapsed().as_secs(),
        };
        match outcome {
            Ok(outcome) => (finding.rows, finding.broken) = (outcome.rows, outcome.broken),
            Err(error) => finding.broken.push(format!("the scenario did not complete: {error:#}")),
        }
        write!(out, "{}", finding.markdown())?;
        out.flush()?;
        findings.push(finding);
    }
    let report: String = findings.iter().map(Finding::markdown).collect();
    let path = arguments.directory.join("report.md");
    let head = format!("# Chaos report\n\nscale {}, seed {}\n\n", arguments.scale, arguments.seed);
    std::fs::write(&path, head + &report)?;
    let good = findings.iter().filter(|finding| finding.is_good()).count();
    writeln!(out, "{good} of {} scenarios kept every promise; report: {}", findings.len(), path.display())?;
    Ok(if good == findings.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! Breaks a real installation on purpose: its own PostgreSQL cluster and RabbitMQ node on private ports and
//! directories, real `redial` processes, and a receiver that keeps an independent ledger. Each scenario ends with a
//! verdict against the promises of ARCHITECTURE.md; any broken promise is a failure.

mod cluster;
mod ledger;
mod limits;
mod load;
mod logs;
mod ports;
mod process;
mod report;
mod scenarios;
mod site;
mod verdict;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use testkit::RabbitNode;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::Cluster;
use crate::report::Finding;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::site::Ground;

/// Breaks a real installation on purpose, and says what came of it.
#[derive(Parser)]
struct Arguments {
    /// Which scenarios; all if none is named.
    scenarios: Vec<String>,
    /// The `redial` to break, built with the feature `failpoints`.
    #[arg(long)]
    binary: PathBuf,
    /// Where the report and the processes' logs go.
    #[arg(long, default_value = "target/chaos", overrides_with = "directory")]
    directory: PathBuf,
    /// How much of the full size: of deliveries, disturbances and waiting times.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How long the storm lasts, in minutes. At full scale: seven.
    #[arg(long)]
    minutes: Option<f64>,
    /// Which disturbances come when.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How large a run is.
pub(crate) struct Scale {
    factor: f64,
    minutes: Option<f64>,
    seed: u64,
    bar: ProgressBar,
    /// When something is to be said next where there is no terminal.
    next_line: Mutex<Duration>,
}

const LINE_EVERY: Duration = Duration::from_secs(10);

impl Scale {
    /// That many, scaled, and at least one.
    pub(crate) fn of(&self, count: usize) -> usize {
        ((count as f64 * self.factor).round() as usize).max(1)
    }

    /// How long the storm lasts.
    pub(crate) fn storm(&self) -> Duration {
        Duration::from_secs_f64(60.0 * self.minutes.unwrap_or(7.0 * self.factor))
    }

    /// Shows what is going on; where there is no terminal, as a line now and then.
    pub(crate) fn say(&self, message: impl Into<String>) {
        let message = message.into();
        if self.bar.is_hidden() {
            let elapsed = self.bar.elapsed();
            let mut next_line = self.next_line.lock().expect("no holder panics");
            if elapsed >= *next_line {
                *next_line = elapsed + LINE_EVERY;
                // Nobody to tell when this fails.
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

// Some of what is done blocks.
#[tokio::main(worker_threads = 6)]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    // Fails only when a provider was chosen before, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let wanted: Vec<&Scenario> = match arguments.scenarios.as_slice() {
        [] => SCENARIOS.iter().collect(),
        names => {
            let find = |name: &String| {
                let known = || SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
                let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
                found.with_context(|| format!("no scenario {name}: there are {}", known()))
            };
            names.iter().map(find).collect::<Result<_>>()?
        }
    };
    std::fs::create_dir_all(&arguments.directory)?;
    let binary = arguments.binary.canonicalize().context("--binary")?;
    let mut out = std::io::stdout();
    writeln!(out, "starting a PostgreSQL cluster and a RabbitMQ node")?;
    let mut ground = Ground {
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
            seed: arguments.seed,
            bar: bar.clone(),
            next_line: Mutex::default(),
        };
        let began = Instant::now();
        // What has been started ends with what is dropped.
        let outcome = tokio::select! {
            outcome = (scenario.run)(&mut ground, &scale) => outcome,
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
            Err(error) => finding.broken.push(format!("the scenario did not come to its end: {error:#}")),
        }
        write!(out, "{}", finding.markdown())?;
        out.flush()?;
        findings.push(finding);
    }
    let report: String = findings.iter().map(Finding::markdown).collect();
    let path = arguments.directory.join("report.md");
    let head = format!(
        "# What was broken, and what came of it\n\nscale {}, seed {}\n\n",
        arguments.scale, arguments.seed
    );
    std::fs::write(&path, head + &report)?;
    let good = findings.iter().filter(|finding| finding.is_good()).count();
    writeln!(out, "{good} of {} scenarios kept every promise; report: {}", findings.len(), path.display())?;
    Ok(if good == findings.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

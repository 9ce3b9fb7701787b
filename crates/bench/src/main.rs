//! Measures the CPU time, the bytes of write-ahead log and the latency of deliveries, in a real installation
//! on this machine. It uses external interfaces only, so it can measure any build of `redial`.

mod arrivals;
mod autoscale;
mod cost;
mod history;
mod installation;
mod load;
mod plot;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::time::sleep;

use crate::arrivals::Arrivals;
use crate::autoscale::Autoscale;
use crate::cost::Cost;
use crate::installation::Installation;
use crate::load::{Load, Rate};
use crate::plot::{Draw, draw};
use crate::report::{Latency, Measured, Report};

/// Measures redeliveries from the request to the record of the result.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    arguments: Option<Arguments>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Draw(Draw),
    Autoscale(Autoscale),
}

#[derive(Args)]
pub(crate) struct Arguments {
    /// Path of the `redial` binary to measure, a release build.
    #[arg(long, overrides_with = "binary", required = true)]
    binary: PathBuf,
    /// What to measure.
    #[arg(long, value_enum, default_value_t = Mode::Burst)]
    mode: Mode,
    /// Number of redeliveries.
    #[arg(long, default_value_t = 20_000)]
    deliveries: usize,
    /// Size of each payload, in bytes or with a unit, such as 64KiB or 1MiB.
    #[arg(long, default_value = "1KiB", value_parser = bytes)]
    payload: usize,
    /// Number of concurrent clients, each with its own connection.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Requests per second in mode `steady`, one rate after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 2_000])]
    rates: Vec<u32>,
    /// Duration of each rate, and of mode `idle`, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Number of dispatchers.
    #[arg(long, default_value_t = 1)]
    dispatchers: usize,
    /// Number of destinations of the callbacks.
    #[arg(long, default_value_t = 1)]
    destinations: u32,
    /// Let receivers answer after 50 ms instead of immediately.
    #[arg(long)]
    slow: bool,
    /// Approximate number of ended deliveries in the database before the measurement.
    #[arg(long, default_value_t = 0)]
    history: usize,
    /// Number of single redeliveries that measure the latency of an idle system.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Measure `redial dev`, on SQLite in one process.
    #[arg(long)]
    embedded: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// As many requests as the clients can send.
    Burst,
    /// Requests at fixed rates.
    Steady,
    /// Like `burst`, to a receiver that answers each first attempt 503. The retry follows after a second.
    Retries,
    /// No requests.
    Idle,
}

/// Number of redeliveries for warm-up before the measurement.
const WARM_UP: usize = 500;
/// Interval of polls for recorded results. It limits the resolution of measured times.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Timeout for callbacks and for recorded results.
const TIMEOUT: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() -> Result<()> {
    // Fails only if a provider is already installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = match Cli::parse() {
        Cli { command: Some(Command::Draw(plot)), .. } => return draw(&plot),
        Cli { command: Some(Command::Autoscale(arguments)), .. } => return autoscale::run(&arguments).await,
        Cli { arguments, .. } => arguments.context("--binary is required")?,
    };
    ensure!(!(arguments.embedded && arguments.history > 0), "--history requires PostgreSQL");
    let mut installation = Installation::start(&arguments)?;
    let measured = tokio::select! {
        measured = measure(&arguments, &mut installation) => measured,
        signal = tokio::signal::ctrl_c() => { signal?; bail!("interrupted") }
    };
    let ended = installation.stop().await;
    let report = measured?;
    ended?;
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        return Ok(writeln!(out)?);
    }
    Ok(write!(out, "{report}")?)
}

async fn measure(arguments: &Arguments, installation: &mut Installation) -> Result<Report> {
    let mut arrivals = Arrivals::listen(installation.secret())?;
    let path = match arguments {
        Arguments { mode: Mode::Retries, .. } => "/fail-first/1",
        Arguments { slow: true, .. } => "/at-once/1000000",
        _ => "/ok",
    };
    let urls = arrivals.urls(path, arguments.destinations);
    let mut load = Load::new(installation, arguments.clients);
    let mut phases = Vec::new();
    if arguments.history > 0 {
        history::make(installation, &load, &mut arrivals, arguments).await?;
    }
    if arguments.mode == Mode::Idle {
        let before = installation.usage()?;
        sleep(Duration::from_secs(arguments.seconds)).await;
        let cost = Cost::between(&before, &installation.usage()?, 1);
        return Ok(Report::new(arguments, phases, None).idle(arguments.seconds, cost));
    }
    let runs = installation.import(WARM_UP, arguments.payload, &urls)?;
    phase(installation, &mut load, &mut arrivals, runs, Rate::Any).await?;

    let idle = match arguments.mode {
        Mode::Burst => {
            let runs = installation.import(arguments.samples, arguments.payload, &urls)?;
            Some(idle_latency(&mut load, &mut arrivals, runs).await?)
        }
        _ => None,
    };
    if let Mode::Steady = arguments.mode {
        for rate in &arguments.rates {
            let count = usize::try_from(u64::from(*rate) * arguments.seconds)?;
            let runs = installation.import(count, arguments.payload, &urls)?;
            phases.push(phase(installation, &mut load, &mut arrivals, runs, Rate::Steady(*rate)).await?);
        }
    } else {
        let runs = installation.import(arguments.deliveries, arguments.payload, &urls)?;
        phases.push(phase(installation, &mut load, &mut arrivals, runs, Rate::Any).await?);
    }
    ensure!(arrivals.invalid() == 0, "{} callbacks had invalid signatures", arrivals.invalid());
    Ok(Report::new(arguments, phases, idle))
}

/// Measures single redeliveries, each requested after the previous one is recorded.
async fn idle_latency(load: &mut Load, arrivals: &mut Arrivals, runs: Vec<String>) -> Result<Latency> {
    let mut took = Vec::with_capacity(runs.len());
    for run in runs {
        let asked = Instant::now();
        let id = load.redeliver(&run).await?;
        let arrived = arrivals.of(&id).await?;
        took.push(arrived.duration_since(asked));
        load.settled().await?;
    }
    Ok(Latency::of(took))
}

/// Requests redeliveries of all runs, and waits until all have arrived and are recorded.
async fn phase(
    installation: &Installation,
    load: &mut Load,
    arrivals: &mut Arrivals,
    runs: Vec<String>,
    rate: Rate,
) -> Result<Measured> {
    let count = runs.len();
    installation.checkpoint()?;
    let before = installation.usage()?;
    let began = Instant::now();
    let asked = load.redeliver_all(runs, rate).await?;
    let accepted = began.elapsed();
    load.settled().await?;
    let recorded = began.elapsed();
    let cost = Cost::between(&before, &installation.usage()?, count);
    let to_arrival = asked.iter().map(|(id, redelivery)| {
        let arrived = arrivals.first(id).with_context(|| format!("delivery {id} never arrived"))?;
        Ok(arrived.saturating_duration_since(redelivery.asked))
    });
    let to_arrival = Latency::of(to_arrival.collect::<Result<_>>()?);
    let to_answer = Latency::of(asked.values().map(|redelivery| redelivery.took).collect());
    let memory = installation.peak_memory()?;
    Ok(Measured { rate, count, accepted, recorded, to_answer, to_arrival, cost, memory })
}

fn bytes(text: &str) -> Result<usize, String> {
    let (number, factor) = match text {
        text if text.ends_with("KiB") => (text.trim_end_matches("KiB"), 1 << 10),
        text if text.ends_with("MiB") => (text.trim_end_matches("MiB"), 1 << 20),
        text => (text, 1),
    };
    let number: usize = number.trim().parse().map_err(|_| "expected a size such as 1KiB".to_owned())?;
    Ok(number * factor)
}

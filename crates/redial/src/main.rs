//! Redial delivers signed HTTP callbacks: retries them, keeps a record of them, and resends them on request.

mod client;
mod commands;
mod examples;
mod keys;
mod metrics;
mod open_files;
mod settings;
mod signals;
mod stack;
mod traces;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::dispatcher::DispatcherError;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    api, config, deliveries, demo, dev, dispatcher, doctor, healthcheck, listen, migrate, org, prune, runs,
    secret, token,
};
use crate::settings::{Settings, SettingsError};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Delivers signed HTTP callbacks: retries them, keeps a record of them, and resends them on request.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// The TOML configuration file. Default: redial.toml in the working directory, if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a demonstration that checks itself: callbacks are delivered, retried and resent.
    Demo,
    Dev(dev::Args),
    /// Serve the HTTP API (PostgreSQL and RabbitMQ).
    Api,
    /// Deliver callbacks (PostgreSQL and RabbitMQ).
    Dispatcher,
    Doctor(doctor::Args),
    Listen(listen::Args),
    Healthcheck(healthcheck::Args),
    /// Migrate the database to the current schema.
    Migrate,
    #[command(subcommand)]
    Org(org::Command),
    #[command(subcommand)]
    Token(token::Command),
    #[command(subcommand, visible_alias = "secrets")]
    Secret(secret::Command),
    #[command(subcommand)]
    Runs(runs::Command),
    #[command(visible_alias = "delivery")]
    Deliveries(deliveries::Args),
    Prune(prune::Args),
    /// Print a shell completion script.
    Completions {
        shell: clap_complete::Shell,
    },
    /// Print the effective configuration with secrets masked.
    Config,
}

/// Timeout for running transactions at exit.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Exit status for bad usage or configuration, the same as clap's.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(run(cli));
        // A database that does not answer must not delay the exit.
        runtime.shutdown_timeout(LAST_WAIT);
        result
    });
    match result {
        Ok(()) => {
            ops::logging::finish(None);
            ExitCode::SUCCESS
        }
        // A reader such as `head` closes the pipe once it has read enough.
        Err(error) if is_broken_pipe(&error) => {
            ops::logging::finish(None);
            ExitCode::SUCCESS
        }
        Err(error) => {
            ops::logging::finish(Some(&format!("redial: {error:#}\n")));
            let is_usage = error.downcast_ref::<SettingsError>().is_some()
                || matches!(error.downcast_ref(), Some(DispatcherError::Certificates { .. }));
            if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether the reader of standard output has closed it. An error of writing there has no context; one of a
/// connection does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_bare = error.chain().len() == 1;
    is_bare
        && error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let settings = match cli.command {
        // Shells run this in any directory, whatever redial.toml is there.
        Command::Completions { .. } => Settings::defaults()?,
        _ => Settings::load(cli.config.as_deref())?,
    };
    let filter = settings.log.filter.as_deref().unwrap_or(match cli.command {
        // These report on standard output.
        Command::Demo => "error",
        // Its lines say what went wrong.
        Command::Doctor(_) => "off",
        Command::Dev(_) | Command::Listen(_) => "warn",
        _ => "info",
    });
    ops::logging::start(filter, settings.log.format)?;
    match cli.command {
        Command::Demo => demo::run().await,
        Command::Dev(args) => dev::run(&settings, args).await,
        Command::Api => api::run(&settings).await,
        Command::Dispatcher => dispatcher::run(&settings, cli.config).await,
        Command::Doctor(args) => doctor::run(&settings, cli.config.as_deref(), args).await,
        Command::Listen(args) => listen::run(args).await,
        Command::Healthcheck(args) => healthcheck::run(args).await,
        Command::Migrate => migrate::run(&settings).await,
        Command::Org(command) => org::run(&settings, command).await,
        Command::Token(command) => token::run(&settings, command).await,
        Command::Secret(command) => secret::run(&settings, command).await,
        Command::Runs(command) => runs::run(&settings, command).await,
        Command::Deliveries(args) => deliveries::run(args).await,
        Command::Prune(args) => prune::run(&settings, args).await,
        Command::Config => config::run(&settings),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "redial", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
    }
}

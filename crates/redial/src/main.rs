//! Redial: signed HTTP callbacks, delivered, retried, kept on record, and sent again on request.

mod client;
mod commands;
mod examples;
mod keys;
mod logging;
mod open_files;
mod settings;
mod signals;
mod stack;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use ::dispatcher::DispatcherError;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    api, config, deliveries, demo, dev, dispatcher, healthcheck, listen, migrate, org, prune, runs, secret,
    token,
};
use crate::settings::{Settings, SettingsError};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Delivers signed HTTP callbacks: retried, kept on record, and sent again on request.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    /// A TOML file; without this, redial.toml of the working directory, if it is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job in one go: callbacks delivered, retried and sent again, everything checked.
    Demo,
    Dev(dev::Args),
    /// Serve the HTTP API (PostgreSQL and RabbitMQ).
    Api,
    /// Deliver callbacks (PostgreSQL and RabbitMQ).
    Dispatcher,
    Listen(listen::Args),
    Healthcheck(healthcheck::Args),
    /// Bring the database up to date.
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
    /// Print a script that completes commands in a shell.
    Completions {
        shell: clap_complete::Shell,
    },
    /// Print the effective configuration, secrets masked.
    Config,
}

/// For transactions under way when everything else has ended.
const LAST_WAIT: Duration = Duration::from_secs(1);
/// Bad usage or configuration; clap uses the same.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| {
        let result = runtime.block_on(run(cli));
        // A database that does not answer must not hold up the end.
        runtime.shutdown_timeout(LAST_WAIT);
        result
    });
    match result {
        Ok(()) => {
            logging::finish(None);
            ExitCode::SUCCESS
        }
        // As `head` does when it has its lines.
        Err(error) if is_broken_pipe(&error) => {
            logging::finish(None);
            ExitCode::SUCCESS
        }
        Err(error) => {
            logging::finish(Some(&format!("redial: {error:#}\n")));
            let is_usage = error.downcast_ref::<SettingsError>().is_some()
                || matches!(error.downcast_ref(), Some(DispatcherError::Certificates { .. }));
            if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether the reader of standard output has closed it. Writing there adds no context; what uses connections does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_bare = error.chain().len() == 1;
    is_bare
        && error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let settings = match cli.command {
        // Asked for by a shell, wherever it is started.
        Command::Completions { .. } => Settings::defaults()?,
        _ => Settings::load(cli.config.as_deref())?,
    };
    let filter = settings.log.filter.as_deref().unwrap_or(match cli.command {
        // These tell their story on standard output.
        Command::Demo => "error",
        Command::Dev(_) | Command::Listen(_) => "warn",
        _ => "info",
    });
    logging::start(filter, settings.log.format)?;
    match cli.command {
        Command::Demo => demo::run().await,
        Command::Dev(args) => dev::run(&settings, args).await,
        Command::Api => api::run(&settings).await,
        Command::Dispatcher => dispatcher::run(&settings, cli.config).await,
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

//! `redial listen`: the scripted receiver on its own.

use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::Context;
use contracts::SigningSecret;
use receiver::{HELP, Options, Received, Receiver, pretty};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::settings::SettingsError;
use crate::signals;

/// Receive callbacks: print each with the result of its signature check, and respond as its path specifies.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Listen address.
    #[arg(default_value = "127.0.0.1:9090")]
    addr: SocketAddr,
    /// A signing secret to verify with, whsec_…; may be repeated.
    // Not parsed by clap, whose error would show the secret.
    #[arg(long = "secret", value_name = "SECRET")]
    secrets: Vec<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let secrets = args.secrets.iter().map(|secret| SigningSecret::parse(secret)).collect::<Result<_, _>>();
    let secrets = secrets.map_err(|error| SettingsError::value("--secret", error.to_string()))?;
    let stopped = signals::stop();
    let (sink, arrivals) = unbounded_channel();
    let receiver = Receiver::bind(args.addr, Options { secrets, sink: Some(sink), ..Options::default() })
        .with_context(|| format!("cannot listen on {}", args.addr))?;
    writeln!(io::stdout(), "listening on {}\n", receiver.url(""))?;
    print_arrivals(arrivals, stopped).await?;
    receiver.stop().await;
    Ok(())
}

/// Prints each callback until `stopped` resolves.
pub(crate) async fn print_arrivals(
    mut arrivals: UnboundedReceiver<Received>,
    stopped: impl Future<Output = &'static str>,
) -> io::Result<()> {
    let print = async {
        while let Some(received) = arrivals.recv().await {
            writeln!(io::stdout(), "{}", pretty(&received))?;
        }
        Ok(())
    };
    tokio::select! {
        printed = print => printed,
        _ = stopped => Ok(()),
    }
}

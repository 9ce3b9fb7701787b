//! `redial listen`: the scripted receiver alone.

use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::Context;
use contracts::SigningSecret;
use receiver::{HELP, Options, Receiver, pretty};
use tokio::sync::mpsc::unbounded_channel;

use crate::signals;

/// Receive callbacks: print each with its signature's verdict, and answer as its path asks.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Where to listen.
    #[arg(default_value = "127.0.0.1:9090")]
    addr: SocketAddr,
    /// A signing secret to verify with, whsec_…; may be repeated.
    #[arg(long = "secret", value_name = "SECRET", value_parser = SigningSecret::parse)]
    secrets: Vec<SigningSecret>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stopped = signals::stop();
    let (sink, mut arrivals) = unbounded_channel();
    let receiver =
        Receiver::bind(args.addr, Options { secrets: args.secrets, sink: Some(sink), ..Options::default() })
            .with_context(|| format!("cannot listen on {}", args.addr))?;
    writeln!(io::stdout(), "listening on {}\n", receiver.url(""))?;
    let print = async {
        while let Some(received) = arrivals.recv().await {
            writeln!(io::stdout(), "{}", pretty(&received))?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        printed = print => printed?,
        _ = stopped => {}
    }
    receiver.stop().await;
    Ok(())
}

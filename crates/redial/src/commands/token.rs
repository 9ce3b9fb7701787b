//! `redial token …`: API tokens.

use contracts::{OrgId, Scope, Scopes};
use store::create_token;

use crate::commands::{label, open_store, print_made, require_organization};
use crate::settings::Settings;

/// API tokens.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a token and print it; it is never shown again.
    Create {
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// What it may do, such as runs:read; may be repeated. Without this, everything.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<Scope>,
        /// What to call it.
        #[arg(long, value_parser = label)]
        label: Option<String>,
        /// Print all fields as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let Command::Create { org, scopes, label, json } = command;
    let store = open_store(settings).await?;
    let scopes = if scopes.is_empty() { Scopes::All } else { Scopes::Named(scopes) };
    let made = store.write(move |tx, now| {
        require_organization(tx, org)?;
        anyhow::Ok(create_token(tx, now, org, scopes, label)?)
    });
    let token = made.await?;
    print_made(&token, &token.token, json)
}

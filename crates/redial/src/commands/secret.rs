//! `redial secret …`: signing secrets.

use contracts::OrgId;
use store::create_secret;

use crate::commands::{label, open_store, print_made, require_organization};
use crate::keys::keyring_of;
use crate::settings::Settings;

/// Signing secrets.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a signing secret and print it; it is never shown again. An organization's first becomes current.
    Create {
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// What to call it.
        #[arg(long, value_parser = label)]
        label: Option<String>,
        /// Print all fields as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let Command::Create { org, label, json } = command;
    let keyring = keyring_of(&settings.database_url()?, settings)?;
    let store = open_store(settings).await?;
    let made = store.write(move |tx, now| {
        require_organization(tx, org)?;
        anyhow::Ok(create_secret(tx, now, &keyring, org, label)?)
    });
    let secret = made.await?;
    print_made(&secret, secret.plain_secret.plain(), json)
}

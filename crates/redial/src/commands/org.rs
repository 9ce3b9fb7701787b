//! `redial org …`: organizations.

use store::create_organization;

use crate::commands::{label, open_store, print_made};
use crate::settings::Settings;

/// Manage organizations.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create an organization and print its id.
    Create {
        /// Its name.
        #[arg(value_parser = label)]
        name: String,
        /// Print all fields as JSON.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let Command::Create { name, json } = command;
    let store = open_store(settings).await?;
    let organization = store.write(move |tx, now| create_organization(tx, now, &name)).await?;
    print_made(&organization, &organization.id.to_string(), json)
}

//! `redial secret …`: signing secrets.

use std::io::{self, Write};

use contracts::OrgId;
use serde_json::json;
use store::{Keyring, Store, create_secret, rewrap_secrets};

use crate::commands::{label, open_store, print_made, require_organization};
use crate::keys::keyring_of;
use crate::settings::Settings;

/// Signing secrets.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a signing secret and print it; it is never shown again. It becomes current when no other is enabled.
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
    /// Seal every secret with the first of secrets.keys, so that the others can be dropped.
    Rewrap,
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let keyring = keyring_of(&settings.database_url()?, settings)?;
    let store = open_store(settings).await?;
    let (org, label, json) = match command {
        Command::Create { org, label, json } => (org, label, json),
        Command::Rewrap => return rewrap(&store, keyring).await,
    };
    let made = store.write(move |tx, now| {
        require_organization(tx, org)?;
        anyhow::Ok(create_secret(tx, now, &keyring, org, label)?)
    });
    let secret = made.await?;
    print_made(&secret, secret.plain_secret.plain(), json)
}

/// In small transactions, while everything else goes on.
async fn rewrap(store: &Store, keyring: Keyring) -> anyhow::Result<()> {
    let (mut rewrapped, mut unopened, mut behind) = (0, Vec::new(), None);
    loop {
        let keyring = keyring.clone();
        let done = store.write(move |tx, _| rewrap_secrets(tx, &keyring, behind)).await?;
        rewrapped += done.rewrapped;
        unopened.extend(done.unopened);
        match done.behind {
            Some(last) => behind = Some(last),
            None => break,
        }
    }
    writeln!(io::stdout(), "{}", json!({"rewrapped": rewrapped, "unopened": unopened}))?;
    anyhow::ensure!(
        unopened.is_empty(),
        "{} secret(s) could not be opened: add the keys they are sealed with to secrets.keys, then repeat",
        unopened.len()
    );
    Ok(())
}

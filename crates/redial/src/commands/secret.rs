//! `redial secret …`: signing secrets.

use std::io::{self, Write};

use contracts::OrgId;
use serde_json::json;
use store::{Keyring, Store, create_secret, rewrap_secrets};

use crate::commands::{label, open_store, print_made, require_organization};
use crate::keys::keyring_of;
use crate::settings::Settings;

/// Manage signing secrets.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create a signing secret and print it; it is never shown again. It becomes current if no other is
    /// enabled.
    Create {
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// Its label.
        #[arg(long, value_parser = label)]
        label: Option<String>,
        /// Print all fields as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Encrypt every secret with the first of secrets.keys, so that the other keys can be removed.
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

/// Rewraps all secrets in small transactions, without blocking services.
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

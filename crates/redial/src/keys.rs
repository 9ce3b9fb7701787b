//! Which keys a database's signing secrets are sealed with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use dispatcher::KeySource;
use store::{DatabaseUrl, Keyring, Store, missing_keys};

use crate::settings::Settings;

/// The key that `redial dev` makes for its own database, beside it.
pub(crate) const FILE: &str = "secrets.key";

/// The key beside a SQLite database if there is one, so that a running `dev` can open what is sealed; else
/// `secrets.keys`.
pub(crate) fn keyring_of(url: &DatabaseUrl, settings: &Settings) -> anyhow::Result<Keyring> {
    let beside = match url {
        DatabaseUrl::Sqlite(path) => Some(Path::new(path).with_file_name(FILE)).filter(|path| path.exists()),
        DatabaseUrl::Postgres(_) => None,
    };
    match beside {
        Some(path) => read(&path),
        None => Ok(settings.keyring()?),
    }
}

/// Reads a key file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Keyring> {
    let key = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Keyring::parse(&[key.trim()]).with_context(|| format!("{} does not hold a key", path.display()))
}

/// Reads `secrets.keys` afresh from where the settings came from.
pub(crate) fn source(config_file: Option<PathBuf>) -> KeySource {
    Arc::new(move || Ok(Settings::load(config_file.as_deref())?.keyring()?))
}

/// Refuses keys that don't open what deliveries may still be signed with.
pub(crate) async fn check(store: &Store, keyring: &Keyring) -> anyhow::Result<()> {
    let keyring = keyring.clone();
    let missing = store.read(move |tx| missing_keys(tx, &keyring)).await?;
    let (needed, idle): (Vec<_>, Vec<_>) = missing.into_iter().partition(|key| key.needed);
    for key in idle {
        tracing::warn!(key_id = key.key_id, secrets = key.secrets, "deleted signing secrets can't be opened");
    }
    if let Some(key) = needed.first() {
        anyhow::bail!(
            "{} signing secret(s) are sealed with key {:?} and can't be opened ({}): put that key back into \
             secrets.keys, beside others if need be; `redial secret rewrap` seals them with the first one",
            key.secrets,
            key.key_id,
            key.reason
        );
    }
    Ok(())
}

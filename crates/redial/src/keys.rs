//! The keys that seal a database's signing secrets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use dispatcher::KeySource;
use store::{DatabaseUrl, Keyring, MissingKey, Store, missing_keys};

use crate::settings::Settings;

/// Name of the key file that `redial dev` creates next to its database.
pub(crate) const FILE: &str = "secrets.key";

/// Returns the key from the file next to a SQLite database, if it exists, so that a running `dev` can open
/// new secrets; otherwise `secrets.keys`.
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

/// Returns a [`KeySource`] that rereads `secrets.keys` from the file and the environment.
pub(crate) fn source(config_file: Option<PathBuf>) -> KeySource {
    Arc::new(move || Ok(Settings::load(config_file.as_deref())?.keyring()?))
}

/// Fails if `keyring` can't open a secret that deliveries may still be signed with; only warns if it is
/// deleted.
pub(crate) async fn check(store: &Store, keyring: &Keyring) -> anyhow::Result<()> {
    let keyring = keyring.clone();
    let missing = store.read(move |tx| missing_keys(tx, &keyring)).await?;
    let (needed, idle): (Vec<_>, Vec<_>) = missing.into_iter().partition(|key| key.needed);
    for key in idle {
        tracing::warn!(key_id = key.key_id, secrets = key.secrets, "deleted signing secrets can't be opened");
    }
    if let Some(key) = needed.first() {
        anyhow::bail!("{}: {ADVICE}", describe(key));
    }
    Ok(())
}

/// What to do about secrets that can't be opened.
pub(crate) const ADVICE: &str = "put that key back into secrets.keys, beside others if need be; `redial secret rewrap` \
                                 seals them with the first one";

/// Describes secrets that can't be opened.
pub(crate) fn describe(key: &MissingKey) -> String {
    let MissingKey { key_id, secrets, reason, .. } = key;
    format!("{secrets} signing secret(s) are sealed with key {key_id:?} and can't be opened ({reason})")
}

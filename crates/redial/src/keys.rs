//! Which keys a database's signing secrets are sealed with.

use std::path::Path;

use anyhow::Context;
use store::{DatabaseUrl, Keyring};

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

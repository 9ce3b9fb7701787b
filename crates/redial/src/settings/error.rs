//! Why the configuration can't be used.

use std::io;
use std::path::PathBuf;

use store::KeyringError;
use thiserror::Error;

/// An error in the configuration.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("cannot read {}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{file}, line {line}: {problem}")]
    Syntax { file: String, line: usize, problem: String },
    #[error("unknown key {key} in {place}")]
    UnknownKey { key: String, place: String },
    #[error("{key}: {problem}")]
    Value { key: String, problem: String },
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error(transparent)]
    Layers(#[from] config::ConfigError),
}

impl SettingsError {
    pub(crate) fn value(key: &str, problem: impl Into<String>) -> SettingsError {
        SettingsError::Value { key: key.to_owned(), problem: problem.into() }
    }
}

//! `redial config`: prints the effective configuration.

use std::io::{self, Write};

use crate::settings::Settings;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<()> {
    write!(io::stdout(), "{}", toml::to_string(settings)?)?;
    Ok(())
}

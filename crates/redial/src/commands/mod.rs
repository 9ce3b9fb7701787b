//! The commands, one module each.

pub(crate) mod api;
pub(crate) mod config;
pub(crate) mod deliveries;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod dispatcher;
pub(crate) mod doctor;
pub(crate) mod healthcheck;
mod import;
pub(crate) mod listen;
pub(crate) mod migrate;
pub(crate) mod org;
pub(crate) mod prune;
pub(crate) mod remote;
pub(crate) mod runs;
pub(crate) mod secret;
mod service;
pub(crate) mod token;

use std::io::{self, Write};

use contracts::OrgId;
use serde::Serialize;
use store::{AnyConnection, Store, find_organization};

use crate::settings::Settings;

/// Connections of a one-off command.
const CONNECTIONS: u32 = 1;

/// Opens the configured database, PostgreSQL or SQLite.
async fn open_store(settings: &Settings) -> anyhow::Result<Store> {
    Ok(Store::open(&settings.database_url()?, CONNECTIONS).await?)
}

/// Parses a name or label: 1 to 255 characters (contract section 3, "Secret object").
fn label(text: &str) -> Result<String, &'static str> {
    let fits = (1..=255).contains(&text.chars().count());
    fits.then(|| text.to_owned()).ok_or("expected 1 to 255 characters")
}

/// Fails with a readable message, rather than a violated constraint, if the organization does not exist.
fn require_organization(tx: &mut AnyConnection, org: OrgId) -> anyhow::Result<()> {
    find_organization(tx, org)?.map(drop).ok_or_else(|| anyhow::anyhow!("there is no organization {org}"))
}

/// Prints a created object: just `brief`, or all fields as JSON.
fn print_made(made: &impl Serialize, brief: &str, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(made)?)?,
        false => writeln!(out, "{brief}")?,
    }
    Ok(())
}

//! `redial migrate`: applies pending migrations.

use std::io::{self, Write};

use anyhow::{Context, bail};

use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings) -> anyhow::Result<()> {
    let url = settings.database_url()?;
    if url.is_pooled() {
        bail!("migrations need sessions of their own: give the server's own url, without pgbouncer=true");
    }
    let shown = url.to_string();
    let applied = tokio::task::spawn_blocking(move || {
        let mut conn = url.connect().context("cannot connect")?;
        anyhow::Ok(store::migrate(&mut conn)?)
    });
    let applied = applied.await?.with_context(|| format!("{shown} was not migrated"))?;
    writeln!(io::stdout(), "{shown} is up to date; {applied} migration(s) applied")?;
    Ok(())
}

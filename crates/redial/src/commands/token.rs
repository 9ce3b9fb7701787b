//! `redial token …`: API tokens.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use contracts::{OrgId, Scope, Scopes, Timestamp, TokenId};
use store::{Token, create_token, list_tokens, revoke_token};

use crate::commands::{label, open_store, print_made, require_organization};
use crate::settings::Settings;

/// Manage API tokens.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Create a token and print it; it is never shown again.
    Create {
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// A scope of the token, such as runs:read; may be repeated. Default: all scopes.
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<Scope>,
        /// Its label.
        #[arg(long, value_parser = label)]
        label: Option<String>,
        /// Lifetime, such as 90d. Default: until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = expiry)]
        expires_in: Option<Duration>,
        /// Print all fields as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List an organization's tokens, including expired and revoked ones, without their secret values.
    List {
        /// The organization they belong to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token: it is refused within 5 seconds.
    Revoke {
        /// The token's id, as shown by `list`.
        // A `String`, because clap's parse errors show the value, which may be the token itself.
        #[arg(value_name = "TOKEN_ID")]
        id: String,
        /// The organization it belongs to.
        #[arg(long, value_name = "ID")]
        org: OrgId,
    },
}

/// Longer than any practical value, and far below the largest timestamp.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

fn expiry(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() || time > LONGEST {
        Err("expected more than 0s and at most 100y".to_owned())
    } else {
        Ok(time)
    }
}

pub(crate) async fn run(settings: &Settings, command: Command) -> anyhow::Result<()> {
    let store = open_store(settings).await?;
    match command {
        Command::Create { org, scopes, label, expires_in, json } => {
            let scopes = if scopes.is_empty() { Scopes::All } else { Scopes::Named(scopes) };
            let made = store.write(move |tx, now| {
                require_organization(tx, org)?;
                let expires_at = expires_in.map(|time| now + time);
                anyhow::Ok(create_token(tx, now, org, scopes, label, expires_at)?)
            });
            let token = made.await?;
            print_made(&token, &token.token, json)
        }
        Command::List { org, json } => {
            let tokens = store.read(move |tx| {
                require_organization(tx, org)?;
                anyhow::Ok(list_tokens(tx, org)?)
            });
            print_list(&tokens.await?, store.clock().now(), json)
        }
        Command::Revoke { id, org } => {
            let Ok(id) = id.parse::<TokenId>() else {
                bail!("expected a token's id, as `redial token list --org {org}` shows it, not the token");
            };
            let revoked = store.write(move |tx, now| anyhow::Ok(revoke_token(tx, now, org, id)?)).await?;
            let token = revoked.with_context(|| format!("organization {org} has no token {id}"))?;
            writeln!(io::stdout(), "{}", state(&token, store.clock().now()))?;
            Ok(())
        }
    }
}

fn print_list(tokens: &[Token], now: Timestamp, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(tokens)?)?;
        return Ok(());
    }
    for token in tokens {
        let scopes = match &token.scopes {
            Scopes::All => "everything".to_owned(),
            Scopes::Named(named) => named.iter().map(Scope::to_string).collect::<Vec<_>>().join(" "),
        };
        let label = token.label.as_deref().unwrap_or("-");
        writeln!(out, "{}  {label:?}  {scopes}  made {}  {}", token.id, token.created_at, state(token, now))?;
    }
    Ok(())
}

/// Formats whether a token is valid, and until or since when.
fn state(token: &Token, now: Timestamp) -> String {
    match (token.revoked_at, token.expires_at) {
        (Some(at), _) => format!("revoked {at}"),
        (None, Some(at)) if at <= now => format!("expired {at}"),
        (None, Some(at)) => format!("good until {at}"),
        (None, None) => "good".to_owned(),
    }
}

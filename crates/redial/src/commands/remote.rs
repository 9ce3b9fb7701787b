//! Shared by the commands that call an API over HTTP.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};
use url::Url;
use url::form_urlencoded::Serializer;

use crate::client::Client;
use crate::commands::dev;
use crate::settings::SettingsError;

/// The API to call, and the output format.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// The API's URL, such as http://127.0.0.1:8080. Default: the variable REDIAL_API_URL, or that of a
    /// running `redial dev` started in this directory.
    #[arg(long, value_name = "URL", global = true)]
    base_url: Option<String>,
    /// A token of the organization. Default: the variable REDIAL_API_TOKEN, or that of `redial dev`.
    #[arg(long, value_name = "TOKEN", global = true)]
    token: Option<String>,
    /// Print the API's JSON: one object per line for lists. Default if standard output is not a terminal.
    #[arg(long, global = true)]
    json: bool,
}

/// How long `--follow` retries while the API does not answer, as during a restart.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Poll interval of `--follow`.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Maximum items per page.
const LARGEST_PAGE: usize = 500;

/// An API to call.
pub(crate) struct Remote {
    client: Client,
    pub(crate) json: bool,
}

impl Target {
    pub(crate) fn open(self) -> Result<Remote> {
        let given = |flag: Option<String>, variable| {
            flag.or_else(|| std::env::var(variable).ok()).filter(|text| !text.is_empty())
        };
        let base_url = given(self.base_url, "REDIAL_API_URL");
        let token = given(self.token, "REDIAL_API_TOKEN");
        let missing = |what, advice| Err(SettingsError::value(what, advice));
        let (base_url, token) = match (base_url, token) {
            (Some(base_url), Some(token)) => (base_url, token),
            (Some(_), None) => {
                missing("no token", "give --token or set REDIAL_API_TOKEN; `redial token create` makes one")?
            }
            // A token alone must not be sent to whatever API happens to run here.
            (None, Some(_)) => missing("a token, but no API", "give --base-url or set REDIAL_API_URL")?,
            (None, None) => match dev::running(Path::new(dev::DATA_DIR))? {
                Some(running) => running,
                None => missing(
                    "no API",
                    "give --base-url and --token, set REDIAL_API_URL and REDIAL_API_TOKEN, or start `redial dev` here",
                )?,
            },
        };
        let is_url = |text: &str| Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !is_url(&base_url) {
            return Err(
                SettingsError::value("--base-url", "expected a URL such as http://127.0.0.1:8080").into()
            );
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SettingsError::value("--token", "it has characters that no token has").into());
        }
        let json = self.json || !io::stdout().is_terminal();
        Ok(Remote { client: Client::new(base_url.trim_end_matches('/'), &token), json })
    }
}

/// A successful response of the API.
pub(crate) struct Answer {
    /// The body as received: numbers of any size, keys in the API's order.
    pub(crate) text: String,
    pub(crate) value: Value,
}

/// A page of a list, with its items as received.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    next: Option<String>,
}

impl Remote {
    /// Returns the object at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        understood(self.client.get(path).await?)
    }

    /// Sends a POST and returns the object that was created or changed.
    pub(crate) async fn post(&self, path: &str, idempotency_key: Option<&str>) -> Result<Answer> {
        understood(self.client.post_once(path, idempotency_key).await?)
    }

    /// Like [`Remote::get`], but retries for up to [`TIMEOUT`] while the API does not answer, or answers 429
    /// or 503.
    pub(crate) async fn get_patiently(&self, path: &str) -> Result<Answer> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.client.get(path).await {
                Err(_) | Ok((429 | 503, _)) if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                answered => return understood(answered?),
            }
        }
    }

    /// Shows up to `limit` items of a list, as a table with `columns` or as one line of JSON per item.
    pub(crate) async fn list(
        &self,
        path: &str,
        filters: &[(&str, Option<String>)],
        limit: usize,
        columns: &[&str],
    ) -> Result<()> {
        let (mut left, mut next, mut rows) = (limit, None::<String>, Vec::new());
        while left > 0 {
            let mut query = Serializer::new(String::new());
            for (name, value) in filters {
                query.extend_pairs(value.iter().map(|value| (*name, value)));
            }
            query.append_pair("limit", &left.min(LARGEST_PAGE).to_string());
            if !self.json {
                query.append_pair("fields", &columns.join(","));
            }
            query.extend_pairs(next.iter().map(|next| ("pq", next)));
            let answer = self.get(&format!("{path}?{}", query.finish())).await?;
            let page: Page = serde_json::from_str(&answer.text).context("the API answered no page")?;
            left = left.saturating_sub(page.items.len());
            next = page.next;
            if self.json {
                let mut out = io::stdout().lock();
                page.items.iter().try_for_each(|item| writeln!(out, "{item}"))?;
            } else {
                rows.extend(
                    page.items
                        .iter()
                        .map(|item| serde_json::from_str(item.get()))
                        .collect::<Result<Vec<_>, _>>()?,
                );
            }
            if next.is_none() {
                break;
            }
        }
        if !self.json {
            print_table(&rows, columns)?;
            if next.is_some() {
                writeln!(io::stderr(), "There are more: --limit shows them.")?;
            }
        }
        Ok(())
    }

    /// Shows an object, as one line per key or as JSON.
    pub(crate) fn show(&self, object: &Answer, keys: &[&str]) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", object.text)?;
            return Ok(());
        }
        for key in keys {
            writeln!(out, "{key:<22} {}", cut(&text(&object.value[*key])))?;
        }
        Ok(())
    }
}

/// Prints rows as a table with a header.
pub(crate) fn print_table(rows: &[Value], columns: &[&str]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.rsplit('.').next()).map(Option::unwrap_or_default));
    for row in rows {
        let value = |column: &&str| text(column.split('.').fold(row, |value: &Value, key| &value[key]));
        table.add_row(columns.iter().map(value));
    }
    writeln!(io::stdout(), "{}", table.trim_fmt())
}

/// Returns the beginning of a text, which may be a megabyte long.
fn cut(text: &str) -> String {
    const SHOWN: usize = 500;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => {
            format!("{}… ({} characters; --json shows all)", &text[..end], text.chars().count())
        }
        None => text.to_owned(),
    }
}

/// Formats a value for a terminal. Control characters, which may be from a receiver's response, are escaped.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect(),
        other => other.to_string(),
    }
}

/// Returns the response, or an error that says what is wrong and what to do about it.
fn understood((status, body): (u16, String)) -> Result<Answer> {
    let answer: Value = serde_json::from_str(&body)
        .with_context(|| format!("status {status}, and no JSON: is this the API's URL?"))?;
    if (200..300).contains(&status) {
        return Ok(Answer { text: body, value: answer });
    }
    let said = text(&answer["message"]);
    let code = text(&answer["code"]);
    let wrong: Vec<String> = answer["errors"].as_array().into_iter().flatten().map(wrong).collect();
    let advice = match status {
        401 => "; is the token right, and has it not ended? `redial token list` tells",
        403 => "; `redial token create --scope` makes a token that may",
        404 => "; is it another organization's? The token decides whose",
        429 | 503 => "; try again in a moment",
        _ => "",
    };
    let wrong = if wrong.is_empty() { String::new() } else { format!(": {}", wrong.join("; ")) };
    bail!("{code}: {said}{wrong}{advice}")
}

/// Formats one entry of `errors`.
fn wrong(error: &Value) -> String {
    let place: Vec<String> = error["loc"].as_array().into_iter().flatten().map(text).collect();
    let in_flight = match error["delivery_id"].as_str() {
        Some(id) => format!(" ({id}; --supersede ends it if it waits)"),
        None => String::new(),
    };
    format!("{}: {}{in_flight}", place.join("."), text(&error["msg"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_of_the_api_is_printed_unchanged() {
        let body = r#"{"b":123456789012345678901234567890,"a":1.50}"#;
        assert_eq!(understood((200, body.into())).unwrap().text, body);
        let page = format!(r#"{{"items":[{body}],"next":null}}"#);
        let page: Page = serde_json::from_str(&page).unwrap();
        assert_eq!(page.items[0].to_string(), body);
    }

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(cut("short"), "short");
        let long = "ü".repeat(1_000);
        assert_eq!(cut(&long), format!("{}… (1000 characters; --json shows all)", "ü".repeat(500)));
    }

    #[test]
    fn a_conflict_names_the_delivery_in_flight_and_the_flag_that_ends_it() {
        let errors =
            json!([{"loc": ["path", "run_id"], "msg": "in flight", "type": "conflict", "delivery_id": "d1"}]);
        let body = json!({"code": "VALIDATION_ERROR", "message": "invalid", "errors": errors}).to_string();
        let told = understood((422, body)).map(drop).unwrap_err().to_string();
        assert_eq!(
            told,
            "VALIDATION_ERROR: invalid: path.run_id: in flight (d1; --supersede ends it if it waits)"
        );
    }
}

//! Serializers for `redial config`: secrets are masked, durations and networks are text.

use std::fmt::Display;
use std::time::Duration;

use serde::{Serialize, Serializer};
use url::{Host, Url};

const MASK: &str = "****";

/// Serializes a URL with its passwords masked, in the authority and in query parameters (accepted by libpq).
pub(super) fn url<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    url.as_deref().map(masked).serialize(serializer)
}

pub(super) fn keys<S: Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    let kids = keys.iter().map(|key| match key.split_once(':') {
        Some((kid, _)) => format!("{kid}:{MASK}"),
        None => MASK.to_owned(),
    });
    serializer.collect_seq(kids)
}

/// Serializes items with `Display`, from which they can be parsed again.
pub(super) fn texts<T: Display, S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(T::to_string))
}

pub(super) fn duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

pub(super) fn optional_duration<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| humantime::format_duration(duration).to_string()).serialize(serializer)
}

pub(super) fn durations<S: Serializer>(durations: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(durations.iter().map(|duration| humantime::format_duration(*duration).to_string()))
}

fn masked(text: &str) -> String {
    if text.starts_with("sqlite:") {
        return text.to_owned();
    }
    match with_one_host(text) {
        Some((url, hosts)) => masked_url(&url).replacen(HOST, hosts, 1),
        None => masked_url(text),
    }
}

/// Stands for several hosts, with which a text is not a valid URL.
const HOST: &str = "hosts.invalid";

/// Returns the URL with [`HOST`] in place of several hosts, and these. `None` if it doesn't have several, or
/// if they may be a part of a password.
fn with_one_host(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let is_plain = |host: &str| {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !host.ends_with(']') => (name, port),
            _ => (host, "0"),
        };
        !name.is_empty() && Host::parse(name).is_ok() && port.parse::<u16>().is_ok()
    };
    let after = &rest[authority.len()..];
    if !hosts.contains(',') || after.contains('@') || !hosts.split(',').all(is_plain) {
        return None;
    }
    let at = if user.is_empty() { "" } else { "@" };
    Some((format!("{scheme}://{user}{at}{HOST}{after}"), hosts))
}

/// Masks everything that is not a valid URL.
fn masked_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if url.cannot_be_a_base() {
        return MASK.to_owned();
    }
    if url.password().is_some() {
        _ = url.set_password(Some(MASK));
    }
    if url.query().is_some() {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let shown = pairs
            .iter()
            .map(|(key, value)| (key, if key.to_lowercase().contains("password") { MASK } else { value }));
        url.query_pairs_mut().clear().extend_pairs(shown);
    }
    url.into()
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn passwords_in_urls_are_masked() {
        for (url, shown) in [
            ("postgres://me:hunter2@db:5432/redial", "postgres://me:****@db:5432/redial"),
            ("amqp://me:hunter2@rabbit/%2f", "amqp://me:****@rabbit/%2f"),
            (
                "postgres://db/redial?password=hunter2&sslmode=prefer",
                "postgres://db/redial?password=****&sslmode=prefer",
            ),
            ("postgres://db/redial?sslPassword=hunter2", "postgres://db/redial?sslPassword=****"),
            ("postgres://me@db/redial", "postgres://me@db/redial"),
            ("postgres://me:hunter2@db1:1,[::1],db2/redial", "postgres://me:****@db1:1,[::1],db2/redial"),
            ("postgres://db1,db2/redial?password=hunter2", "postgres://db1,db2/redial?password=****"),
            ("amqp://me:hunter2@mq1:1,mq2:2/%2f", "amqp://me:****@mq1:1,mq2:2/%2f"),
            ("postgres://me:hun,ter2/x@db1,db2/redial", "****"),
            ("postgres://me:12,ter2/x@db1,db2/redial", "****"),
            ("me:hunter2@db", "****"),
            ("sqlite:redial.db", "sqlite:redial.db"),
        ] {
            assert_eq!(masked(url), shown);
        }
    }
}

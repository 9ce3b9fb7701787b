//! The URL of a database, and what libpq makes of it.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use thiserror::Error;

/// The URL of a database. The scheme selects the engine: `postgres:`, `postgresql:` or `sqlite:`. Formatted
/// without its password.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A libpq connection URI.
    Postgres(String),
    /// The path of a database file.
    Sqlite(String),
}

/// Why a text is not a [`DatabaseUrl`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DatabaseUrlError {
    /// An unknown scheme, or no scheme.
    #[error("expected a URL that begins with postgres:// or sqlite:")]
    Scheme,
    /// `sqlite:` without a path.
    #[error("a sqlite: URL needs the path of a file, such as sqlite:redial.db")]
    Path,
    /// Several hosts, one of which is empty or has a bad port. libpq would take an empty one for a local
    /// socket.
    #[error("several hosts are separated by commas, each HOST or HOST:PORT with a port from 1 to 65535")]
    Hosts,
    /// Characters that make the URL's parts ambiguous and would put a password into messages.
    #[error("a password or name in the URL has a character that must be percent-encoded, such as %, / or @")]
    Unencoded,
    /// Requests TLS from a build without TLS, which would otherwise fall back to clear text or fail with an
    /// obscure error.
    #[error(
        "sslmode={0} asks for TLS, and this program was built without it: build with --features postgres-tls"
    )]
    Tls(String),
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<DatabaseUrl, DatabaseUrlError> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err(DatabaseUrlError::Path)
            } else {
                Ok(DatabaseUrl::Sqlite(path.to_owned()))
            };
        }
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err(DatabaseUrlError::Scheme);
        }
        let before_query = text.split('?').next().unwrap_or(text);
        let path = before_query.splitn(4, '/').nth(3).unwrap_or("");
        let is_encoded = |(place, _)| {
            text.get(place + 1..place + 3)
                .is_some_and(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
        };
        if path.contains('@') || !text.match_indices('%').all(is_encoded) {
            return Err(DatabaseUrlError::Unencoded);
        }
        let hosts = hosts(text);
        if hosts.contains(',') && !hosts.split(',').all(is_host) {
            return Err(DatabaseUrlError::Hosts);
        }
        if cfg!(not(feature = "postgres-tls")) {
            let mode = text.split(['?', '&']).skip(1).find_map(|pair| pair.strip_prefix("sslmode="));
            if let Some(mode @ ("require" | "verify-ca" | "verify-full")) = mode {
                return Err(DatabaseUrlError::Tls(mode.to_owned()));
            }
        }
        Ok(DatabaseUrl::Postgres(text.to_owned()))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Sqlite(path) => write!(f, "sqlite:{path}"),
            // Everything between the scheme and the last @ of the authority may contain a password.
            DatabaseUrl::Postgres(url) => match url.split_once("://").map(|(_, rest)| rest) {
                Some(rest) => {
                    let path = rest[authority(url).len()..].split('?').next().unwrap_or("");
                    write!(f, "postgres://{}{path}", hosts(url))
                }
                None => f.write_str("postgres:"),
            },
        }
    }
}

/// Returns the part of a PostgreSQL URL with user, password, hosts and ports.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?']).next().unwrap_or(rest)
}

/// Returns the hosts with their ports, separated by commas if there are several.
fn hosts(url: &str) -> &str {
    let authority = authority(url);
    authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts)
}

/// Whether a text is a host with or without a port. The colons in the brackets of an IPv6 address precede no
/// port.
fn is_host(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => !host.is_empty() && port.parse::<NonZeroU16>().is_ok(),
        _ => !text.is_empty(),
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// URL parameter which states that a pooler such as PgBouncer is in front of the server and may run each
/// transaction in a different session.
pub(crate) const POOLED: &str = "pgbouncer=true";

/// Returns the URL in the form that libpq accepts.
pub(crate) fn for_libpq(url: &str) -> String {
    let is_pooled = url.split(['?', '&']).any(|part| part == POOLED);
    let own = url.split_once('?').map_or(url.to_owned(), |(place, parameters)| {
        let left: Vec<&str> = parameters.split('&').filter(|part| *part != POOLED).collect();
        if left.is_empty() { place.to_owned() } else { format!("{place}?{}", left.join("&")) }
    });
    let mut url = with_defaults(&own);
    // PgBouncer refuses a setting that it would have to apply to every session. So a pooler that the URL does
    // not declare is detected at connect.
    if !is_pooled && !url.contains("options=") {
        url.push_str("&options=-c%20redial.direct%3Don");
    }
    url
}

/// Whether libpq has several servers to choose from.
fn has_several_hosts(url: &str) -> bool {
    let is_list = |part: &str| {
        let list = part.strip_prefix("host=").or_else(|| part.strip_prefix("hostaddr="));
        list.is_some_and(|hosts| hosts.contains(',') || hosts.to_ascii_uppercase().contains("%2C"))
    };
    hosts(url).contains(',') || url.split(['?', '&']).any(is_list)
}

/// Adds what the URL does not set: time limits, so that a server that vanished is detected within seconds
/// instead of hours, and of several servers the one that accepts writes. While the first of several is
/// silent, each new connection waits for it before it tries the next one, so that limit is shorter.
fn with_defaults(url: &str) -> String {
    let has_several = has_several_hosts(url);
    let mut defaults = vec![
        ("connect_timeout", if has_several { "2" } else { "5" }),
        ("keepalives_idle", "10"),
        ("keepalives_interval", "5"),
        ("keepalives_count", "3"),
        ("tcp_user_timeout", "15000"),
    ];
    if has_several {
        defaults.push(("target_session_attrs", "read-write"));
    }
    defaults.iter().filter(|(name, _)| !url.contains(name)).fold(url.to_owned(), |url, (name, value)| {
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}{name}={value}")
    })
}

impl DatabaseUrl {
    /// Whether a pooler may run each transaction in a different session of the server.
    pub fn is_pooled(&self) -> bool {
        match self {
            DatabaseUrl::Postgres(url) => url.split(['?', '&']).any(|part| part == POOLED),
            DatabaseUrl::Sqlite(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_chooses_the_engine_and_others_are_refused() {
        assert_eq!("sqlite:a.db".parse(), Ok(DatabaseUrl::Sqlite("a.db".into())));
        assert_eq!("sqlite:///tmp/a.db".parse(), Ok(DatabaseUrl::Sqlite("/tmp/a.db".into())));
        assert_eq!("sqlite:".parse::<DatabaseUrl>(), Err(DatabaseUrlError::Path));
        assert_eq!("mysql://x".parse::<DatabaseUrl>(), Err(DatabaseUrlError::Scheme));
    }

    #[test]
    fn a_password_is_never_shown() {
        let url: DatabaseUrl =
            "postgres://me:p%40ss%2Fw@db.example:5432/redial?password=hunter2".parse().unwrap();
        assert_eq!(format!("{url:?}"), "postgres://db.example:5432/redial");
        for url in
            ["postgres://me:p@ss/w@db/redial", "postgres://me:abc/def@db/redial", "postgres://u:100%safe@db"]
        {
            assert_eq!(url.parse::<DatabaseUrl>(), Err(DatabaseUrlError::Unencoded), "{url}");
        }
        let url: DatabaseUrl = "postgres://me:secret@db.example:5432/redial".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://db.example:5432/redial");
    }

    #[test]
    fn several_hosts_are_kept_in_order_and_the_writable_one_is_asked_for() {
        let text = "postgres://me:secret@db1:5432,[::1]:5433,db3/redial";
        let url: DatabaseUrl = text.parse().unwrap();
        assert_eq!(url, DatabaseUrl::Postgres(text.to_owned()));
        assert_eq!(url.to_string(), "postgres://db1:5432,[::1]:5433,db3/redial");
        let asked = for_libpq(text);
        for part in ["connect_timeout=2&", "&target_session_attrs=read-write&"] {
            assert!(asked.contains(part), "{asked}");
        }
        let asked = for_libpq("postgres://db1,db2/redial?target_session_attrs=any&connect_timeout=9");
        assert!(asked.contains("target_session_attrs=any") && !asked.contains("read-write"), "{asked}");
        assert!(asked.contains("connect_timeout=9") && !asked.contains("connect_timeout=2"), "{asked}");
        let asked = for_libpq("postgres://db1/redial");
        assert!(asked.contains("connect_timeout=5") && !asked.contains("target_session_attrs"), "{asked}");
        for hosts in ["db1,", ",db1", "db1,,db2", "db1:0,db2", "db1:65536,db2", "db1,db2:port", "db1,:5432"] {
            let refused = format!("postgres://me:secret@{hosts}/redial").parse::<DatabaseUrl>();
            assert_eq!(refused, Err(DatabaseUrlError::Hosts), "{hosts}");
        }
    }

    #[test]
    #[cfg(not(feature = "postgres-tls"))]
    fn a_build_without_tls_refuses_a_url_that_asks_for_it() {
        let url = "postgres://db/redial?connect_timeout=3&sslmode=verify-full";
        assert_eq!(url.parse::<DatabaseUrl>(), Err(DatabaseUrlError::Tls("verify-full".into())));
    }
}

//! Validation of a `callback_url` (contract section 3).

use contracts::MAX_URL_CHARS;
use thiserror::Error;
use url::{Host, Url};

/// Maximum lengths of a host name in its ASCII form, and of one label, in octets (RFC 1035).
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// An absolute http or https URL with a host, without userinfo or fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetUrl(Url);

/// Why a text is not a valid [`TargetUrl`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetUrlError {
    /// Longer than [`MAX_URL_CHARS`].
    #[error("the URL is longer than {MAX_URL_CHARS} characters")]
    TooLong,
    /// Whitespace or a control character. A URL parser drops some of these silently, so the URL called would
    /// differ from the URL on record.
    #[error("the URL contains whitespace or control characters; percent-encode them")]
    Whitespace,
    /// Relative, without a host, with an invalid port and the like.
    #[error("not an absolute URL: {0}")]
    Syntax(#[from] url::ParseError),
    /// Neither http nor https.
    #[error("the scheme `{0}` is not supported; use https or http")]
    Scheme(String),
    /// `user:password@`.
    #[error("the URL must not contain a user name or password")]
    Userinfo,
    /// `#...`, which is never sent.
    #[error("the URL must not contain a fragment")]
    Fragment,
    /// Too few or too many slashes after the scheme.
    #[error("the scheme must be followed by `://` and the host")]
    Slashes,
    /// A backslash: some URL parsers read it as a slash, others don't.
    #[error("the URL contains a backslash; use a slash, or percent-encode it")]
    Backslash,
    /// The host is invalid, see [`HostError`].
    #[error(transparent)]
    Host(#[from] HostError),
    /// Port 0, where nothing listens.
    #[error("port 0 can't be called")]
    Port,
    /// Longer than [`MAX_URL_CHARS`], but only in its normalised form.
    #[error(
        "the URL is longer than {MAX_URL_CHARS} characters once it is percent-encoded and its host in ASCII"
    )]
    GrowsTooLong,
}

/// Why a text is not a host that can be called.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// Neither a name nor an address.
    #[error("not a host: {0}")]
    Syntax(#[from] url::ParseError),
    /// Longer than a name may be.
    #[error("the host is longer than {MAX_HOST} octets in its ASCII form")]
    TooLong,
    /// A label is empty or longer than a label may be.
    #[error(
        "the host has an empty part between dots, or one of more than {MAX_LABEL} octets in its ASCII form"
    )]
    LabelLength,
    /// A label is malformed: the name can't be looked up or can't be verified by TLS.
    #[error(
        "a part of the host has other characters than letters, digits, - and _, or - at its start or end"
    )]
    LabelForm,
}

impl TargetUrl {
    /// Parses a URL that is to be recorded. Stricter than [`TargetUrl::parse`]: also refuses URLs that can't
    /// be called, and spellings that this parser corrects silently but others read differently.
    pub fn parse_new(text: &str) -> Result<Self, TargetUrlError> {
        let target = Self::parse(text)?;
        check_spelling(text)?;
        if let Host::Domain(name) = target.host() {
            check_name(name)?;
        }
        if target.port() == 0 {
            return Err(TargetUrlError::Port);
        }
        if target.0.as_str().len() > MAX_URL_CHARS {
            return Err(TargetUrlError::GrowsTooLong);
        }
        Ok(target)
    }

    /// Parses a URL on record, which older rules may have accepted. Checks its form only;
    /// [`Policy`](crate::Policy) decides whether the target may be called.
    pub fn parse(text: &str) -> Result<Self, TargetUrlError> {
        if text.chars().count() > MAX_URL_CHARS {
            return Err(TargetUrlError::TooLong);
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(TargetUrlError::Whitespace);
        }
        let url = Url::parse(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(TargetUrlError::Scheme(url.scheme().to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetUrlError::Userinfo);
        }
        if url.fragment().is_some() {
            return Err(TargetUrlError::Fragment);
        }
        if url.host().is_none() {
            return Err(url::ParseError::EmptyHost.into());
        }
        Ok(Self(url))
    }

    /// Returns the URL to call. Its text is normalised, ASCII only, and sent unchanged.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Returns the normalised host: names in lower-case ASCII, an address in any spelling as that address.
    pub fn host(&self) -> Host<&str> {
        self.0.host().expect("parse() refuses URLs without a host")
    }

    /// Returns [`TargetUrl::host`] as text, with IPv6 addresses in brackets.
    pub fn host_str(&self) -> &str {
        self.0.host_str().expect("parse() refuses URLs without a host")
    }

    /// Returns the URL's port, or the default port of its scheme.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().expect("http and https have a known port")
    }

    /// Returns scheme, host and port, always with the port: `https://example.com:443`.
    pub fn origin(&self) -> String {
        format!("{}://{}:{}", self.0.scheme(), self.host_str(), self.port())
    }
}

/// Normalises a host without port to the form of [`TargetUrl::host_str`], by the rules of
/// [`TargetUrl::parse_new`].
pub fn normalize_host(text: &str) -> Result<String, HostError> {
    let host = Host::parse(text)?;
    if let Host::Domain(name) = &host {
        check_name(name)?;
    }
    Ok(host.to_string())
}

/// `text` must have been parsed as an http or https URL.
fn check_spelling(text: &str) -> Result<(), TargetUrlError> {
    let (before_query, _) = text.split_once('?').unwrap_or((text, ""));
    if before_query.contains('\\') {
        return Err(TargetUrlError::Backslash);
    }
    let (_, rest) = before_query.split_once(':').unwrap_or_default();
    let rest = rest.strip_prefix("//").ok_or(TargetUrlError::Slashes)?;
    let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return Err(TargetUrlError::Slashes);
    }
    // An empty user name, which the parser drops.
    if authority.contains('@') { Err(TargetUrlError::Userinfo) } else { Ok(()) }
}

/// `name` must be ASCII. A trailing dot denotes the DNS root and is legal.
fn check_name(name: &str) -> Result<(), HostError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > MAX_HOST {
        return Err(HostError::TooLong);
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > MAX_LABEL {
            return Err(HostError::LabelLength);
        }
        let is_legal = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
        if !label.chars().all(is_legal) || label.starts_with('-') || label.ends_with('-') {
            return Err(HostError::LabelForm);
        }
    }
    Ok(())
}

//! A `callback_url` that keeps the rules of contract section 3.

use thiserror::Error;
use url::{Host, Url};

/// The longest accepted URL, in characters (contract section 3).
pub const MAX_URL_CHARS: usize = 2048;

/// The longest host name in its ASCII form, and the longest of its labels, in octets (RFC 1035).
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;

/// An absolute http or https URL with a host, without userinfo and fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetUrl(Url);

/// Why a text is no [`TargetUrl`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetUrlError {
    /// More than [`MAX_URL_CHARS`].
    #[error("the URL is longer than {MAX_URL_CHARS} characters")]
    TooLong,
    /// A URL parser drops some of these silently, and then another URL is called than the one on record.
    #[error("the URL contains whitespace or control characters; percent-encode them")]
    Whitespace,
    /// Relative, without a host, a bad port and the like.
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
    /// Too few slashes, or too many.
    #[error("the scheme must be followed by `://` and the host")]
    Slashes,
    /// To a URL parser it is a slash, to others it is not.
    #[error("the URL contains a backslash; use a slash, or percent-encode it")]
    Backslash,
    /// See [`HostError`].
    #[error(transparent)]
    Host(#[from] HostError),
    /// Nothing listens there.
    #[error("port 0 can't be called")]
    Port,
    /// More than [`MAX_URL_CHARS`], but only in its normalised form.
    #[error(
        "the URL is longer than {MAX_URL_CHARS} characters once it is percent-encoded and its host in ASCII"
    )]
    GrowsTooLong,
}

/// Why a text is no host that can be called.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// Neither a name nor an address.
    #[error("not a host: {0}")]
    Syntax(#[from] url::ParseError),
    /// Longer than any name.
    #[error("the host is longer than {MAX_HOST} octets in its ASCII form")]
    TooLong,
    /// Empty, or longer than any label.
    #[error(
        "the host has an empty part between dots, or one of more than {MAX_LABEL} octets in its ASCII form"
    )]
    LabelLength,
    /// Names with such labels can't be looked up or can't be verified by TLS.
    #[error(
        "a part of the host has other characters than letters, digits, - and _, or - at its start or end"
    )]
    LabelForm,
}

impl TargetUrl {
    /// Reads a URL that is to be recorded. Beyond [`TargetUrl::parse`] it refuses what can't be called, and spellings
    /// that a URL parser mends silently and others read otherwise.
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

    /// Reads a URL on record, which older rules may have let in. Checks the form only; whether the target may be
    /// called is for [`Policy`](crate::Policy) to say.
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

    /// The URL to call. As text it is the normalised form: ASCII only, and what goes on the wire.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// The host, normalised: names in lower-case ASCII, every spelling of an address as that address.
    pub fn host(&self) -> Host<&str> {
        self.0.host().expect("parse() refuses URLs without a host")
    }

    /// [`TargetUrl::host`] as text, IPv6 addresses in brackets.
    pub fn host_str(&self) -> &str {
        self.0.host_str().expect("parse() refuses URLs without a host")
    }

    /// The port, given or the scheme's.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().expect("http and https have a known port")
    }

    /// Scheme, host and port, the port always present: `https://example.com:443`.
    pub fn origin(&self) -> String {
        format!("{}://{}:{}", self.0.scheme(), self.host_str(), self.port())
    }
}

/// A host without port as [`TargetUrl::host_str`] has it, by the rules of [`TargetUrl::parse_new`].
pub fn normalize_host(text: &str) -> Result<String, HostError> {
    let host = Host::parse(text)?;
    if let Host::Domain(name) = &host {
        check_name(name)?;
    }
    Ok(host.to_string())
}

/// `text` has been parsed as an http or https URL.
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
    // An empty user, which the parser drops.
    if authority.contains('@') { Err(TargetUrlError::Userinfo) } else { Ok(()) }
}

/// `name` is in ASCII. A dot at its end is the root's, and legal.
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

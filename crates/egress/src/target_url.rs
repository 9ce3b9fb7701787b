//! A `callback_url` that keeps the rules of contract section 3.

use thiserror::Error;
use url::{Host, Url};

/// The longest accepted URL, in characters (contract section 3).
pub const MAX_URL_CHARS: usize = 2048;

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
}

impl TargetUrl {
    /// Checks the form only; whether the target may be called is for [`Policy`](crate::Policy) to say.
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

    /// The URL to call.
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

    /// Scheme, host and port, the port always present: `https://example.com:443`.
    pub fn origin(&self) -> String {
        let port = self.0.port_or_known_default().expect("http and https have a known port");
        format!("{}://{}:{port}", self.0.scheme(), self.host_str())
    }
}

//! The outcome of an attempt.

use std::time::Duration;

use contracts::{FailureReason, Timing};

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The receiver sent a complete response head, with or without a complete body.
    Answered(Response),
    /// The receiver sent no complete response head, or nothing could be sent to it.
    Failed(Failure),
    /// Nothing was sent, for a local reason. The attempt is handed back.
    NotSent(LocalFailure),
}

/// The receiver's response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The start of the body, as stored: see [`kept_body`].
    pub body: String,
    /// The `Retry-After` headers, unparsed.
    pub retry_after: Vec<String>,
}

/// The measurements of an attempt, for its record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// The time to the complete response head, or to the failure. `None`: unknown.
    pub response_time: Option<Duration>,
    /// The phases of the HTTP exchange.
    pub timing: Timing,
}

/// Why an attempt failed: a code for programs and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Failure {
    pub reason: FailureReason,
    pub detail: String,
}

/// A local reason why an attempt was not sent; the receiver is not at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LocalFailure {
    /// The rest of the lease is shorter than a request's timeout.
    LeaseTooShort,
    /// The system refused a socket: out of file descriptors or memory.
    NoSocket,
    /// No local port is left for connections to this destination.
    NoLocalPort,
    /// No name server of the system answers.
    NoNameServer,
    /// Too many lookups of names with slow name servers are in progress.
    NoLookup,
    /// The signing secret is encrypted with a key that this process does not have.
    KeyMissing,
    /// The database refused to read the signing secret.
    SecretUnread,
    /// More was claimed than may be in flight now: the destination has slowed down since, or several tries of
    /// one claim committed.
    OverLimit,
}

impl LocalFailure {
    /// Returns whether all other attempts of this process fail in the same way.
    pub fn concerns_all(self) -> bool {
        match self {
            LocalFailure::NoSocket | LocalFailure::NoNameServer => true,
            LocalFailure::LeaseTooShort
            | LocalFailure::NoLocalPort
            | LocalFailure::KeyMissing
            | LocalFailure::SecretUnread
            | LocalFailure::NoLookup
            | LocalFailure::OverLimit => false,
        }
    }

    /// Returns a description for logs.
    pub fn detail(self) -> &'static str {
        match self {
            LocalFailure::LeaseTooShort => {
                "the dispatcher stalled until too little was left of the attempt's lease"
            }
            LocalFailure::NoSocket => "the system gave no socket: out of open files or of memory",
            LocalFailure::NoLocalPort => "no local port is left for connections to the destination",
            LocalFailure::NoNameServer => "no name server answers",
            LocalFailure::NoLookup => "too many names are being looked up whose name servers are slow",
            LocalFailure::KeyMissing => "secrets.keys lacks the key that the signing secret is sealed with",
            LocalFailure::SecretUnread => "the database refused to read the signing secret",
            LocalFailure::OverLimit => "more was claimed than may be in flight now",
        }
    }
}

impl Outcome {
    /// The outcome of an attempt that got no response.
    pub fn failed(reason: FailureReason, detail: impl Into<String>) -> Outcome {
        Outcome::Failed(Failure { reason, detail: kept_detail(detail.into()) })
    }
}

/// The longest stored part of a response body, in bytes.
pub const BODY_KEPT: usize = 8 * 1024;

/// The longest stored detail, in bytes. A certificate for hundreds of names can cause one of many thousands.
const DETAIL_KEPT: usize = 500;

/// Returns a detail as stored: truncated to [`DETAIL_KEPT`], and without NUL, which PostgreSQL rejects.
fn kept_detail(mut detail: String) -> String {
    if detail.len() > DETAIL_KEPT {
        detail.truncate(detail.floor_char_boundary(DETAIL_KEPT));
        detail.push('…');
    }
    detail.replace('\0', "")
}

/// Returns a response body as stored: its first 8 KiB as lossy UTF-8, without NUL, which PostgreSQL rejects.
pub fn kept_body(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(BODY_KEPT)]).replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_detail_is_short_and_without_nul() {
        assert_eq!(kept_detail("a\0b".to_owned()), "ab");
        let long = kept_detail("é".repeat(1_000));
        assert!(long.ends_with("é…") && long.len() <= DETAIL_KEPT + '…'.len_utf8());
    }

    #[test]
    fn a_kept_body_is_short_valid_and_without_nul() {
        assert_eq!(kept_body(b"a\0b\xffc"), "ab\u{fffd}c");
        assert_eq!(kept_body(&[b'x'; 10_000]).len(), BODY_KEPT);
    }
}

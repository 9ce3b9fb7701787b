//! What came of an attempt.

use std::time::Duration;

use contracts::{FailureReason, Timing};

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The receiver sent a complete response head, whatever became of the body.
    Answered(Response),
    /// It sent none, or nothing could be sent to it.
    Failed(Failure),
    /// Nothing was sent, for a reason of ours: the attempt is handed back.
    NotSent(LocalFailure),
}

/// What the receiver answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The start of the body, cleaned for storing.
    pub body: String,
    /// The `Retry-After` headers, as they came.
    pub retry_after: Vec<String>,
}

/// What was measured of an attempt, for the record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// To the complete response head, or to the failure. `None`: unknown.
    pub response_time: Option<Duration>,
    /// The exchange in detail.
    pub timing: Timing,
}

/// Why an attempt failed: a word for programs, a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Failure {
    pub reason: FailureReason,
    pub detail: String,
}

/// Why an attempt was not sent although nothing is wrong with its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LocalFailure {
    /// Too little of the lease is left for a request with its whole budget.
    LeaseTooShort,
    /// The system gives this process no more sockets: open files or memory are used up.
    NoSocket,
    /// No local port is left for connections to this one destination.
    NoLocalPort,
    /// None of the system's name servers answers.
    NoNameServer,
    /// Too many names are being looked up whose name servers are slow.
    NoLookup,
    /// The signing secret is sealed with a key that this process lacks.
    KeyMissing,
    /// The database refused to read the signing secret.
    SecretUnread,
    /// More was claimed than may be in flight now: its destination has slowed down since, or several tries of one claim
    /// came through.
    OverLimit,
}

impl LocalFailure {
    /// Whether every other attempt of this process fails the same way.
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

    /// What is wrong, for logs.
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

/// How much of a response body is kept, in bytes.
pub const BODY_KEPT: usize = 8 * 1024;

/// The longest sentence kept, in bytes. A certificate for hundreds of names can make one of many thousands.
const DETAIL_KEPT: usize = 500;

/// A sentence as it is stored: not too long, and without NUL, which PostgreSQL refuses.
fn kept_detail(mut detail: String) -> String {
    if detail.len() > DETAIL_KEPT {
        detail.truncate(detail.floor_char_boundary(DETAIL_KEPT));
        detail.push('…');
    }
    detail.replace('\0', "")
}

/// A response body as it is stored: its first 8 KiB as lossy UTF-8, without NUL, which PostgreSQL refuses.
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

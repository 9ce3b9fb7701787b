//! What came of an attempt.

use contracts::FailureReason;

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
    /// The `Retry-After` header, as it came.
    pub retry_after: Option<String>,
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
    /// Too little was left of the lease: the dispatcher stalled, or its database was away.
    LeaseTooShort,
    /// No socket to be had: no file descriptor, no port, no memory for it.
    NoSocket,
    /// None of our name servers answers.
    NoNameServer,
    /// The signing secret is sealed with a key that this process lacks.
    KeyMissing,
}

impl LocalFailure {
    /// Whether any attempt of this process would fail the same way.
    pub fn concerns_all(self) -> bool {
        matches!(self, LocalFailure::NoSocket | LocalFailure::NoNameServer)
    }

    /// One sentence for an operator.
    pub fn detail(self) -> &'static str {
        match self {
            LocalFailure::LeaseTooShort => "too little was left of the attempt's lease to send it",
            LocalFailure::NoSocket => "no socket to be had: raise the limit of open files, or lower dispatcher.max_in_flight",
            LocalFailure::NoNameServer => "none of this host's name servers answers",
            LocalFailure::KeyMissing => "the signing secret is sealed with a key that secrets.keys lacks",
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

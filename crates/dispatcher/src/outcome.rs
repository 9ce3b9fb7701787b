//! What came of sending one attempt.

use contracts::FailureReason;
use store::Failure;

/// The outcome of an attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A complete response head came, whatever became of the body.
    Answered(Answer),
    /// None came, or nothing was sent.
    Failed(Failure),
}

/// What the receiver answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The start of the body, cleaned for storing.
    pub body: String,
    /// The `Retry-After` header, as it came.
    pub retry_after: Option<String>,
}

impl Outcome {
    /// None came, for that reason.
    pub fn failed(reason: FailureReason, detail: impl Into<String>) -> Outcome {
        Outcome::Failed(Failure { reason, detail: kept_detail(detail.into()) })
    }
}

/// How much of a response body is kept.
pub(crate) const BODY_KEPT: usize = 8 * 1024;

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
pub(crate) fn kept_body(body: &[u8]) -> String {
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

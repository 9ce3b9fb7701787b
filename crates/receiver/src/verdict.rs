//! Verifying a callback's signatures (contract section 2).

use std::fmt;

use actix_web::http::header::HeaderMap;
use contracts::{SigningSecret, Timestamp, sign};
use subtle::ConstantTimeEq;

/// How far `webhook-timestamp` may be from the receiver's clock: the tolerance the Standard Webhooks libraries
/// use. It bounds how long an intercepted callback can be replayed.
const TOLERANCE_SECONDS: u64 = 5 * 60;

/// What the signatures of a callback are worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both signatures match one of the known secrets, and the timestamp is recent.
    Valid,
    /// It carries no signature: the organization had no secret.
    Unsigned,
    /// It is signed, but this receiver was given no secret to check with.
    NoSecretKnown,
    /// It must not be trusted, for the reason given.
    Invalid(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("signatures valid"),
            Self::Unsigned => f.write_str("not signed"),
            Self::NoSecretKnown => f.write_str("signed, not checked: no secret known here"),
            Self::Invalid(reason) => write!(f, "SIGNATURE INVALID: {reason}"),
        }
    }
}

/// Checks both signatures; any of `secrets` may match, as during a rotation.
pub(crate) fn verify(secrets: &[SigningSecret], headers: &HeaderMap, body: &[u8], now: Timestamp) -> Verdict {
    let signed = ["runflow-signature", "webhook-signature"].iter().any(|name| headers.contains_key(*name));
    match (signed, secrets) {
        (false, _) => Verdict::Unsigned,
        (true, []) => Verdict::NoSecretKnown,
        (true, _) => match check(secrets, headers, body, now) {
            Ok(()) => Verdict::Valid,
            Err(reason) => Verdict::Invalid(reason),
        },
    }
}

fn check(secrets: &[SigningSecret], headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<(), String> {
    let header = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.ok_or_else(|| format!("{name} is missing or not ASCII"))
    };
    let id = header("webhook-id")?;
    let timestamp: i64 =
        header("webhook-timestamp")?.parse().map_err(|_| "webhook-timestamp is not a number".to_owned())?;
    let away = now.unix_seconds().abs_diff(timestamp);
    if away > TOLERANCE_SECONDS {
        return Err(format!(
            "webhook-timestamp is {away} s away from this clock (at most {TOLERANCE_SECONDS})"
        ));
    }
    let (runflow, standard) = (header("runflow-signature")?, header("webhook-signature")?);
    let mut reason = "runflow-signature matches no known secret";
    for secret in secrets {
        let expected = sign(secret, id, timestamp, body);
        if !same(&expected.runflow_signature, runflow) {
            continue;
        }
        // Standard Webhooks allows several signatures, separated by spaces.
        if standard.split(' ').any(|one| same(&expected.webhook_signature, one)) {
            return Ok(());
        }
        reason = "runflow-signature matches, webhook-signature does not";
    }
    Err(reason.to_owned())
}

/// In constant time: how long a comparison takes must not tell a forger how much of a guess was right.
fn same(expected: &str, given: &str) -> bool {
    expected.as_bytes().ct_eq(given.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    const BODY: &[u8] = br#"{"event": "run.completed"}"#;
    const SIGNED_AT: i64 = 1_700_000_000;

    fn secret(fill: u8) -> SigningSecret {
        SigningSecret::from_key(&[fill; 32])
    }

    fn signed_with(secret: &SigningSecret) -> Vec<(&'static str, String)> {
        let signed = sign(secret, "id-1", SIGNED_AT, BODY);
        vec![
            ("webhook-id", "id-1".into()),
            ("webhook-timestamp", SIGNED_AT.to_string()),
            ("runflow-signature", signed.runflow_signature),
            ("webhook-signature", signed.webhook_signature),
        ]
    }

    fn judge(
        secrets: &[SigningSecret],
        headers: Vec<(&'static str, String)>,
        body: &[u8],
        now: i64,
    ) -> Verdict {
        let headers: HeaderMap = headers
            .into_iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap()))
            .collect();
        verify(secrets, &headers, body, Timestamp::from_micros(now * 1_000_000))
    }

    fn reason(verdict: Verdict) -> String {
        match verdict {
            Verdict::Invalid(reason) => reason,
            other => panic!("{other:?} is not invalid"),
        }
    }

    #[test]
    fn any_of_the_known_secrets_may_match() {
        let headers = signed_with(&secret(2));
        assert_eq!(judge(&[secret(1), secret(2)], headers, BODY, SIGNED_AT), Verdict::Valid);
    }

    #[test]
    fn without_a_signature_or_a_secret_nothing_is_called_invalid() {
        let unsigned = vec![("webhook-id", "id-1".into())];
        assert_eq!(judge(&[secret(1)], unsigned, BODY, SIGNED_AT), Verdict::Unsigned);
        assert_eq!(judge(&[], signed_with(&secret(1)), BODY, SIGNED_AT), Verdict::NoSecretKnown);
    }

    #[test]
    fn a_changed_body_or_an_unknown_secret_is_invalid() {
        let tampered = br#"{"event": "run.failed"}"#;
        for (known, body) in [(secret(1), tampered.as_slice()), (secret(2), BODY)] {
            let verdict = judge(&[known], signed_with(&secret(1)), body, SIGNED_AT);
            assert_eq!(reason(verdict), "runflow-signature matches no known secret");
        }
    }

    #[test]
    fn both_signatures_must_match_with_the_same_secret() {
        let mut mixed = signed_with(&secret(1));
        mixed[3] = signed_with(&secret(2)).remove(3);
        let verdict = judge(&[secret(1), secret(2)], mixed, BODY, SIGNED_AT);
        assert_eq!(reason(verdict), "runflow-signature matches, webhook-signature does not");
    }

    #[test]
    fn a_missing_header_is_invalid() {
        for missing in 0..4 {
            let mut headers = signed_with(&secret(1));
            let (name, _) = headers.remove(missing);
            let verdict = judge(&[secret(1)], headers, BODY, SIGNED_AT);
            assert_eq!(reason(verdict), format!("{name} is missing or not ASCII"));
        }
    }

    #[test]
    fn a_timestamp_over_five_minutes_away_is_invalid() {
        for (away, valid) in [(-301, false), (-300, true), (300, true), (301, false)] {
            let verdict = judge(&[secret(1)], signed_with(&secret(1)), BODY, SIGNED_AT + away);
            assert_eq!(verdict == Verdict::Valid, valid, "{away} s: {verdict:?}");
        }
    }

    #[test]
    fn one_of_several_standard_signatures_is_enough() {
        let mut headers = signed_with(&secret(1));
        headers[3].1 = format!("v1,AAAA {}", headers[3].1);
        assert_eq!(judge(&[secret(1)], headers, BODY, SIGNED_AT), Verdict::Valid);
    }
}

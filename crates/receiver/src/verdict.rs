//! Verification of a callback's signatures (contract section 2).

use std::fmt;

use actix_web::http::header::HeaderMap;
use contracts::{SigningSecret, Timestamp, sign};
use subtle::ConstantTimeEq;

/// Maximum difference between `webhook-timestamp` and the receiver's clock, as in the Standard Webhooks
/// libraries. It bounds how long an intercepted callback can be replayed.
const TOLERANCE_SECONDS: u64 = 5 * 60;

/// Result of checking a callback's signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both signatures match one known secret, and the timestamp is recent.
    Valid,
    /// `webhook-signature` matches a known secret, and the timestamp is recent. `Runflow-Signature`, which
    /// has room for one secret only, was made with an unknown one, as happens during a rotation.
    WebhookValid,
    /// It has no signature: the organization had no secret.
    Unsigned,
    /// It is signed, but this receiver has no secret to check it with.
    NoSecretKnown,
    /// It must not be trusted, for the given reason.
    Invalid(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("signatures valid"),
            Self::WebhookValid => {
                f.write_str("webhook-signature valid, Runflow-Signature by a secret not known here")
            }
            Self::Unsigned => f.write_str("not signed"),
            Self::NoSecretKnown => f.write_str("signed, not checked: no secret known here"),
            Self::Invalid(reason) => write!(f, "SIGNATURE INVALID: {reason}"),
        }
    }
}

/// Checks both signatures. Any of `secrets` may match, as needed during a rotation.
pub(crate) fn verify(secrets: &[SigningSecret], headers: &HeaderMap, body: &[u8], now: Timestamp) -> Verdict {
    let signed = ["runflow-signature", "webhook-signature"].iter().any(|name| headers.contains_key(*name));
    match (signed, secrets) {
        (false, _) => Verdict::Unsigned,
        (true, []) => Verdict::NoSecretKnown,
        (true, _) => check(secrets, headers, body, now).unwrap_or_else(Verdict::Invalid),
    }
}

fn check(
    secrets: &[SigningSecret],
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Result<Verdict, String> {
    let header = |name: &str| {
        let mut values = headers.get_all(name);
        let value = values.next().and_then(|value| value.to_str().ok());
        let value = value.ok_or_else(|| format!("{name} is missing or not ASCII"))?;
        values.next().map_or(Ok(value), |_| Err(format!("{name} is there more than once")))
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
    let mut is_listed = false;
    for secret in secrets {
        let expected = sign(secret, id, timestamp, body);
        let is_one_listed = standard.split(' ').any(|one| same(&expected.webhook_signature, one));
        match (same(&expected.runflow_signature, runflow), is_one_listed) {
            (true, true) => return Ok(Verdict::Valid),
            (true, false) => return Err("runflow-signature matches, webhook-signature does not".to_owned()),
            (false, _) => is_listed |= is_one_listed,
        }
    }
    if is_listed {
        Ok(Verdict::WebhookValid)
    } else {
        Err("runflow-signature matches no known secret".to_owned())
    }
}

/// Compares in constant time, so that the duration does not reveal how much of a forged signature is right.
fn same(expected: &str, given: &str) -> bool {
    expected.as_bytes().ct_eq(given.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};
    use contracts::Signing;

    use super::*;

    const BODY: &[u8] = br#"{"event": "run.completed"}"#;
    const SIGNED_AT: i64 = 1_700_000_000;

    fn secret(fill: u8) -> SigningSecret {
        SigningSecret::from_key(&[fill; 32])
    }

    fn signed_with(secret: &SigningSecret) -> Vec<(&'static str, String)> {
        signed_with_all(secret, std::slice::from_ref(secret))
    }

    fn signed_with_all(runflow: &SigningSecret, webhook: &[SigningSecret]) -> Vec<(&'static str, String)> {
        let signing = Signing { runflow: runflow.clone(), webhook: webhook.to_vec() };
        let signed = signing.sign("id-1", SIGNED_AT, BODY);
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
    fn a_callback_without_a_signature_or_a_known_secret_is_not_invalid() {
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
        let headers = signed_with_all(&secret(1), &[secret(3), secret(2), secret(1)]);
        for known in [vec![secret(1)], vec![secret(2), secret(1)], vec![secret(1), secret(2), secret(3)]] {
            assert_eq!(judge(&known, headers.clone(), BODY, SIGNED_AT), Verdict::Valid);
        }
        for known in [vec![secret(2)], vec![secret(4), secret(3)], vec![secret(2), secret(3)]] {
            assert_eq!(judge(&known, headers.clone(), BODY, SIGNED_AT), Verdict::WebhookValid);
        }
        let reason = reason(judge(&[secret(4)], headers, BODY, SIGNED_AT));
        assert_eq!(reason, "runflow-signature matches no known secret");
    }

    #[test]
    fn malformed_entries_among_several_signatures_are_ignored() {
        for list in ["v1,AAAA {}", "v1a,AAAA  {} ", "{} v2,{}", "v1, {} v1"] {
            let mut headers = signed_with(&secret(1));
            headers[3].1 = list.replace("{}", &headers[3].1);
            assert_eq!(judge(&[secret(1)], headers, BODY, SIGNED_AT), Verdict::Valid, "{list}");
        }
    }

    #[test]
    fn an_empty_altered_or_repeated_signature_is_invalid() {
        let good = signed_with(&secret(1));
        let altered: [fn(&str) -> String; 5] = [
            |_| String::new(),
            |signature| signature.to_uppercase(),
            |signature| signature.to_lowercase(),
            |signature| signature.replace("v1,", "v2,"),
            |signature| signature.replace("v1,", ""),
        ];
        for alter in altered {
            let mut headers = good.clone();
            headers[3].1 = alter(&headers[3].1);
            let reason = reason(judge(&[secret(1)], headers, BODY, SIGNED_AT));
            assert_eq!(reason, "runflow-signature matches, webhook-signature does not");
        }
        for repeated in 0..4 {
            let mut headers = good.clone();
            headers.push(good[repeated].clone());
            let reason = reason(judge(&[secret(1)], headers, BODY, SIGNED_AT));
            assert_eq!(reason, format!("{} is there more than once", good[repeated].0));
        }
    }
}

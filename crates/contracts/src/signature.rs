//! The two signatures of a callback (contract section 2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::SigningSecret;

/// The values of the signature headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHeaders {
    /// `Runflow-Signature`: lowercase hex of HMAC-SHA256 over the body, keyed with the whole plain secret.
    pub runflow_signature: String,
    /// `webhook-signature`: for each secret, `v1,` and base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`,
    /// keyed with the decoded secret (Standard Webhooks 1.0). Separated by spaces.
    pub webhook_signature: String,
}

/// The secrets that sign one request.
#[derive(Clone, Debug)]
pub struct Signing {
    /// The secret of `Runflow-Signature`, which has a single value.
    pub runflow: SigningSecret,
    /// The secrets of `webhook-signature`, in the order of its values.
    pub webhook: Vec<SigningSecret>,
}

impl Signing {
    /// Signs `body` in both schemes. `webhook_id` and `timestamp` (Unix seconds) must equal the headers sent
    /// with it.
    pub fn sign(&self, webhook_id: &str, timestamp: i64, body: &[u8]) -> SignedHeaders {
        let signatures: Vec<String> =
            self.webhook.iter().map(|secret| standard(secret, webhook_id, timestamp, body)).collect();
        SignedHeaders {
            runflow_signature: runflow(&self.runflow, body),
            webhook_signature: signatures.join(" "),
        }
    }
}

/// Signs like [`Signing::sign`], with a single secret.
pub fn sign(secret: &SigningSecret, webhook_id: &str, timestamp: i64, body: &[u8]) -> SignedHeaders {
    SignedHeaders {
        runflow_signature: runflow(secret, body),
        webhook_signature: standard(secret, webhook_id, timestamp, body),
    }
}

fn runflow(secret: &SigningSecret, body: &[u8]) -> String {
    hex::encode(mac(secret.plain().as_bytes(), &[body]))
}

fn standard(secret: &SigningSecret, webhook_id: &str, timestamp: i64, body: &[u8]) -> String {
    let timestamp = timestamp.to_string();
    let mac = mac(secret.key(), &[webhook_id.as_bytes(), b".", timestamp.as_bytes(), b".", body]);
    format!("v1,{}", STANDARD.encode(mac))
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference body of contract section 2.
    const BODY: &str = r#"{"event": "run.completed", "run_id": "3c90c3cc-0d44-4b50-8888-8dd25736052a", "status": "succeeded", "output": {}, "duration_ms": 123, "created_at": "2023-11-07T05:31:56+00:00", "completed_at": "2023-11-07T05:31:56+00:00", "metadata": {}}"#;

    #[test]
    fn both_signatures_match_the_reference_vectors() {
        let secret = SigningSecret::parse("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        let id = "msg_3c90c3cc0d444b5088888dd25736052a";
        let signed = sign(&secret, id, 1_699_335_116, BODY.as_bytes());
        assert_eq!(
            signed.runflow_signature,
            "600675898e2f632e8ff68bebe3c0f24291f166f2356ed5968d35edd5ee127b2b"
        );
        assert_eq!(signed.webhook_signature, "v1,ymY3U5LCVFsyPKa+1Q/9Kpe4nYNS+YSSQl6f9SafkiU=");
    }

    #[test]
    fn webhook_signature_lists_every_secret_in_order_and_runflow_signature_has_its_own() {
        let secrets = [1, 2, 3].map(|fill| SigningSecret::from_key(&[fill; 32]));
        let one = |secret| sign(secret, "id", 7, b"body");
        let [first, second, third] = &secrets;
        let signing = Signing { runflow: second.clone(), webhook: vec![third.clone(), first.clone()] };
        let signed = signing.sign("id", 7, b"body");
        assert_eq!(signed.runflow_signature, one(second).runflow_signature);
        let list = [one(third).webhook_signature, one(first).webhook_signature].join(" ");
        assert_eq!(signed.webhook_signature, list);
    }

    #[test]
    fn debug_output_does_not_contain_the_secret() {
        let secret = SigningSecret::from_key(&[7; 32]);
        assert_eq!(format!("{secret:?}"), "SigningSecret(…)");
        let signing = Signing { runflow: secret.clone(), webhook: vec![secret] };
        assert_eq!(
            format!("{signing:?}"),
            "Signing { runflow: SigningSecret(…), webhook: [SigningSecret(…)] }"
        );
    }
}

//! The two signatures of a callback (contract section 2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::SigningSecret;

/// The signature headers' values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHeaders {
    /// `Runflow-Signature`: lower-case hex of HMAC-SHA256 over the body, keyed with the whole plain secret.
    pub runflow_signature: String,
    /// `webhook-signature`: `v1,` and base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`, keyed with the
    /// decoded secret (Standard Webhooks 1.0).
    pub webhook_signature: String,
}

/// Signs `body` both ways. `webhook_id` and `timestamp` (Unix seconds) are those of the headers sent with it.
pub fn sign(secret: &SigningSecret, webhook_id: &str, timestamp: i64, body: &[u8]) -> SignedHeaders {
    let runflow = mac(secret.plain().as_bytes(), &[body]);
    let standard =
        mac(secret.key(), &[webhook_id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body]);
    SignedHeaders {
        runflow_signature: hex::encode(runflow),
        webhook_signature: format!("v1,{}", STANDARD.encode(standard)),
    }
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
    fn a_secret_never_shows_itself_in_debug_output() {
        let secret = SigningSecret::from_key(&[7; 32]);
        assert_eq!(format!("{secret:?}"), "SigningSecret(…)");
        assert_eq!(SigningSecret::parse(secret.plain()).unwrap().key(), &[7; 32]);
    }
}

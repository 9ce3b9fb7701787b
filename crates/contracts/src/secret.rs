//! Signing secrets: an organization's HMAC keys.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use thiserror::Error;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{OrgId, SecretId, Timestamp};

/// The secret object of the API, without any key material. Keys are in the contract's order (section 3).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct CallbackSecret {
    pub id: SecretId,
    pub org_id: OrgId,
    /// The first characters of the plain secret, to identify it.
    pub key_prefix: String,
    pub is_current: bool,
    #[schema(required)]
    pub label: Option<String>,
    #[schema(required)]
    pub disabled_at: Option<Timestamp>,
    #[schema(required)]
    pub last_used_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A new secret. Only this response contains its plain text.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewSecret {
    /// The whole secret, `whsec_…`.
    #[serde(serialize_with = "shown")]
    #[schema(value_type = String)]
    pub plain_secret: SigningSecret,
    /// The secret object, which stays readable.
    #[serde(flatten)]
    pub secret: CallbackSecret,
}

fn shown<S: Serializer>(secret: &SigningSecret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.plain())
}

/// A plain signing secret: `whsec_` and the standard base64 of its key. Not printed by `Debug`, wiped on
/// drop.
#[derive(Clone)]
pub struct SigningSecret {
    plain: Zeroizing<String>,
    key: Zeroizing<Vec<u8>>,
}

/// Why a text is not a [`SigningSecret`]. Never contains the text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SecretKeyError {
    /// The prefix `whsec_` is missing.
    #[error("a signing secret begins with \"whsec_\"")]
    Prefix,
    /// The alphabet, padding or length is not that of standard base64.
    #[error("a signing secret is standard base64 with its padding after \"whsec_\", and nothing else")]
    Base64,
    /// The key is too short to resist guessing.
    #[error("a signing secret decodes to {min} bytes or more, not {0}", min = SigningSecret::MIN_KEY)]
    Short(usize),
}

impl SigningSecret {
    const PREFIX: &str = "whsec_";
    /// `whsec_` and six characters of base64: 36 of 256 bits, just enough to identify the secret.
    const SHOWN: usize = 12;
    /// The shortest key in bytes. Shorter ones are open to brute force.
    const MIN_KEY: usize = 16;

    /// Returns the secret with a key of 32 random bytes.
    pub fn from_key(key: &[u8; 32]) -> SigningSecret {
        let plain = Zeroizing::new(format!("{}{}", Self::PREFIX, STANDARD.encode(key)));
        SigningSecret { plain, key: Zeroizing::new(key.to_vec()) }
    }

    /// Parses `whsec_…`. Surrounding white space is ignored, because a file's last line ends in a newline.
    pub fn parse(plain: &str) -> Result<SigningSecret, SecretKeyError> {
        let plain = plain.trim();
        let encoded = plain.strip_prefix(Self::PREFIX).ok_or(SecretKeyError::Prefix)?;
        let key = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| SecretKeyError::Base64)?);
        if key.len() < Self::MIN_KEY {
            return Err(SecretKeyError::Short(key.len()));
        }
        Ok(SigningSecret { plain: Zeroizing::new(plain.to_owned()), key })
    }

    /// Returns the whole text, which is the key of `Runflow-Signature`.
    pub fn plain(&self) -> &str {
        &self.plain
    }

    /// Returns the decoded bytes after `whsec_`, which are the key of `webhook-signature`.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// Returns the value of [`CallbackSecret::key_prefix`].
    pub fn key_prefix(&self) -> &str {
        self.plain.get(..Self::SHOWN).unwrap_or(Self::PREFIX)
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_parsed_despite_surrounding_white_space() {
        let secret = SigningSecret::from_key(&[7; 32]);
        for around in ["\n", "\r\n", " \t"] {
            let read = SigningSecret::parse(&format!("{around}{}{around}", secret.plain())).unwrap();
            assert_eq!((read.plain(), read.key()), (secret.plain(), &[7; 32][..]));
        }
        let shortest = format!("whsec_{}", STANDARD.encode([7; 16]));
        assert_eq!(SigningSecret::parse(&shortest).unwrap().key(), [7; 16]);
    }

    #[test]
    fn an_invalid_secret_is_refused_without_being_shown() {
        use SecretKeyError::{Base64, Prefix, Short};
        let good = STANDARD.encode([0xfb; 32]); // with characters that the URL-safe alphabet lacks
        let bad = |text: String| SigningSecret::parse(&text).unwrap_err();
        for prefix in ["", "WHSEC_", "whsec", "v1,whsec_"] {
            assert_eq!(bad(format!("{prefix}{good}")), Prefix, "{prefix}");
        }
        assert_eq!(bad("\n".into()), Prefix);
        let unpadded = good.trim_end_matches('=').to_owned();
        let inner = format!("{}\n{}", &good[..10], &good[10..]);
        let trailing_bits = format!("{}t=", &good[..42]);
        for encoded in [
            "not base64!".to_owned(),
            good.replace('+', "-"),
            format!("{good}="),
            format!("{good}!"),
            format!(" {good}"),
            unpadded,
            inner,
            trailing_bits,
        ] {
            assert_eq!(bad(format!("whsec_{encoded}")), Base64, "{encoded:?}");
        }
        assert_eq!(bad("whsec_".into()), Short(0));
        let error = bad(format!("whsec_{}", STANDARD.encode([0xfb; 15])));
        assert_eq!(error, Short(15));
        assert_eq!(error.to_string(), "a signing secret decodes to 16 bytes or more, not 15");
    }
}

//! Signing secrets: an organization's HMAC keys.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use thiserror::Error;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{OrgId, SecretId, Timestamp};

/// The secret object as the API shows it: never secret material. Keys in the contract's order (section 3).
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs)]
pub struct CallbackSecret {
    pub id: SecretId,
    pub org_id: OrgId,
    /// The first characters of the plain secret, to recognise it by.
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

/// A secret just made; the only time the API shows its plain text.
#[derive(Debug, Serialize, ToSchema)]
pub struct NewSecret {
    /// The whole secret, `whsec_…`.
    #[serde(serialize_with = "shown")]
    #[schema(value_type = String)]
    pub plain_secret: SigningSecret,
    /// What stays readable.
    #[serde(flatten)]
    pub secret: CallbackSecret,
}

fn shown<S: Serializer>(secret: &SigningSecret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.plain())
}

/// A plain signing secret: `whsec_` and the standard base64 of its key. Never printed by `Debug`, wiped on drop.
#[derive(Clone)]
pub struct SigningSecret {
    plain: Zeroizing<String>,
    key: Zeroizing<Vec<u8>>,
}

/// Why a text is not a [`SigningSecret`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected a signing secret: \"whsec_\" and standard base64")]
pub struct SecretKeyError;

impl SigningSecret {
    const PREFIX: &str = "whsec_";
    /// `whsec_` and six characters of base64: 36 of 256 bits, enough to recognise it and no more.
    const SHOWN: usize = 12;

    /// The secret made of 32 random bytes.
    pub fn from_key(key: &[u8; 32]) -> SigningSecret {
        let plain = Zeroizing::new(format!("{}{}", Self::PREFIX, STANDARD.encode(key)));
        SigningSecret { plain, key: Zeroizing::new(key.to_vec()) }
    }

    /// Parses `whsec_…`.
    pub fn parse(plain: &str) -> Result<SigningSecret, SecretKeyError> {
        let encoded = plain.strip_prefix(Self::PREFIX).ok_or(SecretKeyError)?;
        let key = STANDARD.decode(encoded).ok().filter(|key| !key.is_empty()).ok_or(SecretKeyError)?;
        Ok(SigningSecret { plain: Zeroizing::new(plain.to_owned()), key: Zeroizing::new(key) })
    }

    /// The whole text. It is the key of `Runflow-Signature`.
    pub fn plain(&self) -> &str {
        &self.plain
    }

    /// The decoded bytes after `whsec_`. They are the key of `webhook-signature`.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// What `key_prefix` shows.
    pub fn key_prefix(&self) -> &str {
        self.plain.get(..Self::SHOWN).unwrap_or(Self::PREFIX)
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

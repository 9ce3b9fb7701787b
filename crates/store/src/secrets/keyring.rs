//! The keys that encrypt signing secrets at rest.
//!
//! XChaCha20-Poly1305 with a random nonce. The associated data contains the ids of the secret and its
//! organization and the key's name, so a sealed secret moved to another row does not open.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use contracts::{OrgId, SecretId, SigningSecret};
use thiserror::Error;
use zeroize::Zeroizing;

/// The keys of `secrets.keys`: the first one seals, all of them open.
#[derive(Clone)]
pub struct Keyring(Vec<(String, XChaCha20Poly1305)>);

/// Why the keys of `secrets.keys` can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeyringError {
    /// There are no keys.
    #[error(
        "secrets.keys is empty: give at least one \"kid:base64\" key of 32 bytes (`openssl rand -base64 32`)"
    )]
    Empty,
    /// Not `kid:base64`, or not 32 bytes.
    #[error(
        "secrets.keys: key number {0} is not \"kid:base64\" with 32 bytes of base64 (`openssl rand -base64 32`)"
    )]
    Malformed(usize),
    /// Two keys have the same name.
    #[error("secrets.keys: two keys are called {0:?}")]
    Duplicate(String),
}

/// Why a sealed secret can't be opened.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// The organization has no such secret.
    #[error("there is no such signing secret")]
    NotFound,
    /// Sealed with a key that this keyring lacks.
    #[error("the secret is sealed with key {0:?}, which is not in secrets.keys")]
    KeyMissing(String),
    /// The key with this name is another one, or the sealed bytes were changed or moved.
    #[error("the sealed secret does not open with key {0:?}")]
    DoesNotOpen(String),
}

/// A sealed secret and the name of its key.
pub(crate) struct Sealed {
    pub(crate) key_id: String,
    pub(crate) bytes: Vec<u8>,
}

const NONCE: usize = 24;

impl Keyring {
    /// Parses keys written `kid:base64`.
    pub fn parse<S: AsRef<str>>(keys: &[S]) -> Result<Keyring, KeyringError> {
        let mut ring: Vec<(String, XChaCha20Poly1305)> = Vec::with_capacity(keys.len());
        for (i, text) in keys.iter().enumerate() {
            let malformed = KeyringError::Malformed(i + 1);
            let Some((kid, encoded)) = text.as_ref().split_once(':') else { return Err(malformed) };
            let key = Zeroizing::new(STANDARD.decode(encoded).unwrap_or_default());
            let Ok(cipher) = XChaCha20Poly1305::new_from_slice(&key) else { return Err(malformed) };
            if kid.is_empty() {
                return Err(malformed);
            }
            if ring.iter().any(|(known, _)| known == kid) {
                return Err(KeyringError::Duplicate(kid.to_owned()));
            }
            ring.push((kid.to_owned(), cipher));
        }
        if ring.is_empty() { Err(KeyringError::Empty) } else { Ok(Keyring(ring)) }
    }

    /// Generates a random key in the form that [`Keyring::parse`] reads.
    pub fn generate(kid: &str) -> Zeroizing<String> {
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        Zeroizing::new(format!("{kid}:{}", STANDARD.encode(*key)))
    }

    /// Returns the name of the key that seals.
    pub(crate) fn first(&self) -> &str {
        &self.0[0].0
    }

    pub(crate) fn seal(&self, org: OrgId, id: SecretId, secret: &SigningSecret) -> Sealed {
        let (key_id, cipher) = &self.0[0];
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload { msg: secret.plain().as_bytes(), aad: &context(org, id, key_id) };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).expect("a short text can be sealed");
        Sealed { key_id: key_id.clone(), bytes: [&nonce[..], &sealed].concat() }
    }

    pub(crate) fn open(&self, org: OrgId, id: SecretId, sealed: &Sealed) -> Result<SigningSecret, OpenError> {
        let missing = || OpenError::KeyMissing(sealed.key_id.clone());
        let does_not_open = || OpenError::DoesNotOpen(sealed.key_id.clone());
        let (_, cipher) = self.0.iter().find(|(kid, _)| *kid == sealed.key_id).ok_or_else(missing)?;
        let (nonce, text) = sealed.bytes.split_first_chunk::<NONCE>().ok_or_else(does_not_open)?;
        let payload = Payload { msg: text, aad: &context(org, id, &sealed.key_id) };
        let plain = cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| does_not_open())?;
        let plain = Zeroizing::new(String::from_utf8(plain).map_err(|_| does_not_open())?);
        SigningSecret::parse(&plain).map_err(|_| does_not_open())
    }
}

/// The associated data of a sealed secret.
fn context(org: OrgId, id: SecretId, key_id: &str) -> Vec<u8> {
    [b"redial signing secret 2".as_slice(), org.0.as_bytes(), id.0.as_bytes(), key_id.as_bytes()].concat()
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(kid, _)| kid)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (OrgId, SecretId) {
        (OrgId(uuid::Uuid::from_u128(1)), SecretId(uuid::Uuid::from_u128(2)))
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let (org, id) = ids();
        let secret = SigningSecret::from_key(&[9; 32]);
        let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
        let sealed = Keyring::parse(&[&**old]).unwrap().seal(org, id, &secret);
        let both = Keyring::parse(&[&**new, &**old]).unwrap();
        assert_eq!(both.open(org, id, &sealed).unwrap().plain(), secret.plain());
        assert_eq!(both.seal(org, id, &secret).key_id, "new");
        let only_new = Keyring::parse(&[&**new]).unwrap();
        assert_eq!(only_new.open(org, id, &sealed).unwrap_err(), OpenError::KeyMissing("old".into()));
    }

    #[test]
    fn a_sealed_secret_opens_only_in_its_own_place_with_its_own_key() {
        let (org, id) = ids();
        let ring = Keyring::parse(&[&**Keyring::generate("k")]).unwrap();
        let sealed = ring.seal(org, id, &SigningSecret::from_key(&[9; 32]));
        let elsewhere = SecretId(uuid::Uuid::from_u128(3));
        let refused = OpenError::DoesNotOpen("k".into());
        assert_eq!(ring.open(org, elsewhere, &sealed).unwrap_err(), refused);
        let namesake = Keyring::parse(&[&**Keyring::generate("k")]).unwrap();
        assert_eq!(namesake.open(org, id, &sealed).unwrap_err(), refused);
    }

    #[test]
    fn unusable_keys_are_named() {
        let good = Keyring::generate("a");
        assert_eq!(Keyring::parse::<&str>(&[]).unwrap_err(), KeyringError::Empty);
        assert_eq!(Keyring::parse(&["nokid"]).unwrap_err(), KeyringError::Malformed(1));
        assert_eq!(Keyring::parse(&[&**good, "b:c2hvcnQ="]).unwrap_err(), KeyringError::Malformed(2));
        assert_eq!(Keyring::parse(&[&**good, &**good]).unwrap_err(), KeyringError::Duplicate("a".into()));
    }
}

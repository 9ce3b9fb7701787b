//! The signing secrets deliveries were frozen with, opened once and kept.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contracts::{FailureReason, OrgId, SecretId, SigningSecret};
use store::{AnyConnection, Keyring, OpenError, Store, StoreError, note_secret_used, open_secret};

use crate::OUTAGE_PAUSE;
use engine::{LocalFailure, Outcome};

/// Opens secrets and remembers them: what an id stands for never changes.
pub(crate) struct Signer {
    store: Store,
    keys: Keys,
    opened: Mutex<HashMap<SecretId, Opened>>,
}

#[derive(Clone)]
struct Opened {
    secret: SigningSecret,
    /// When its use was noted last, on the clock's monotonic time.
    noted: Duration,
}

/// How often the use of a secret is noted: in no transaction of a delivery's, and seldom enough not to be felt.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// Organizations rotate rarely; with more secrets than this in use at once, forgetting all of them costs little.
const REMEMBERED: usize = 10_000;

impl Signer {
    pub(crate) fn new(store: Store, keyring: Keyring, source: KeySource) -> Signer {
        Signer { store, keys: Keys::new(keyring, source), opened: Mutex::default() }
    }

    /// Returns the secret, or the outcome of the attempt that it can't be had for. A database outage is waited for until
    /// `deadline` on the clock's monotonic time. Before a secret is said not to open, the keys are read again.
    pub(crate) async fn secret(
        &self,
        org: OrgId,
        id: SecretId,
        deadline: Duration,
    ) -> Result<SigningSecret, Outcome> {
        if let Some(secret) = self.remembered(id) {
            return Ok(secret);
        }
        let secret = loop {
            let (keyring, reading) = self.keys.current().await;
            // Reading waits for no lock; its use is noted apart.
            let opening = move |tx: &mut AnyConnection| open_secret(tx, &keyring, org, id);
            let refusal = match self.store.read::<_, StoreError, _>(opening).await {
                Ok(Ok(secret)) => break secret,
                Ok(Err(refusal)) => refusal,
                Err(error) if error.is_outage() => {
                    if self.store.clock().monotonic() >= deadline {
                        tracing::warn!(%error, secret_id = %id, "signing secret not read in time");
                        return Err(Outcome::NotSent(LocalFailure::LeaseTooShort));
                    }
                    tokio::time::sleep(OUTAGE_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, secret_id = %id, "signing secret not read");
                    return Err(Outcome::NotSent(LocalFailure::SecretUnread));
                }
            };
            let needs_key = !matches!(refusal, OpenError::NotFound);
            if needs_key && self.keys.read_again(reading, self.store.clock().monotonic()).await {
                continue;
            }
            return Err(match refusal {
                // Logged once, as what keeps attempts from being sent.
                OpenError::KeyMissing(_) => Outcome::NotSent(LocalFailure::KeyMissing),
                OpenError::DoesNotOpen(_) | OpenError::NotFound => {
                    tracing::error!(error = %refusal, secret_id = %id, "signing secret not opened");
                    let detail = "the signing secret could not be opened with the keys at hand";
                    Outcome::failed(FailureReason::SigningUnavailable, detail)
                }
            });
        };
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= REMEMBERED {
            opened.clear();
        }
        opened.insert(id, Opened { secret: secret.clone(), noted: self.store.clock().monotonic() });
        drop(opened);
        self.note_use(id);
        Ok(secret)
    }

    fn remembered(&self, id: SecretId) -> Option<SigningSecret> {
        let now = self.store.clock().monotonic();
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let Opened { secret, noted } = opened.get_mut(&id)?;
        if now.saturating_sub(*noted) >= NOTED_EVERY {
            *noted = now;
            self.note_use(id);
        }
        Some(secret.clone())
    }

    fn note_use(&self, id: SecretId) {
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.write(move |tx, now| note_secret_used(tx, now, id)).await {
                tracing::debug!(%error, secret_id = %id, "the use of a signing secret was not noted");
            }
        });
    }
}

/// Reads `secrets.keys` afresh from where it is configured. May block.
pub type KeySource = Arc<dyn Fn() -> Result<Keyring, KeySourceError> + Send + Sync>;
/// Why keys could not be read.
pub type KeySourceError = Box<dyn Error + Send + Sync>;

/// The keys in use, and where to read them again.
struct Keys {
    source: KeySource,
    state: tokio::sync::Mutex<KeysRead>,
}

struct KeysRead {
    keyring: Keyring,
    /// Counts successful readings.
    reading: u64,
    /// When they were read last, successfully or not, on the clock's monotonic time.
    tried_at: Option<Duration>,
}

/// Minimum interval between two readings of the keys: a missing key must not cost a file read for each attempt.
const KEYS_READ_EVERY: Duration = Duration::from_secs(10);

impl Keys {
    fn new(keyring: Keyring, source: KeySource) -> Keys {
        Keys { source, state: KeysRead { keyring, reading: 0, tried_at: None }.into() }
    }

    /// The keys and the number of their reading.
    async fn current(&self) -> (Keyring, u64) {
        let state = self.state.lock().await;
        (state.keyring.clone(), state.reading)
    }

    /// Reads the keys again unless that was tried lately, and returns whether they are newer than `reading`. Concurrent
    /// callers share one reading.
    async fn read_again(&self, reading: u64, now: Duration) -> bool {
        let mut state = self.state.lock().await;
        if state.reading != reading {
            return true;
        }
        if state.tried_at.is_some_and(|at| now.saturating_sub(at) < KEYS_READ_EVERY) {
            return false;
        }
        state.tried_at = Some(now);
        let source = self.source.clone();
        let read = tokio::task::spawn_blocking(move || source()).await;
        match read.unwrap_or_else(|panicked| Err(panicked.into())) {
            Ok(keyring) => {
                tracing::info!(keys = ?keyring, "secrets.keys read again");
                (state.keyring, state.reading) = (keyring, reading + 1);
                true
            }
            Err(error) => {
                tracing::error!(%error, "secrets.keys not read again");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use contracts::{NewSecret, Timestamp};
    use store::{Clock, create_organization, create_secret};
    use testkit::{Engine, Proxy, TestDatabase};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn ring(keys: &[&str]) -> Keyring {
        Keyring::parse(keys).unwrap()
    }

    /// An organization with a secret sealed with the first of `keys`.
    async fn secret(store: &Store, keys: &[&str]) -> NewSecret {
        let keyring = ring(keys);
        let made = store.write(move |tx, now| {
            let org = create_organization(tx, now, "test")?.id;
            create_secret(tx, now, &keyring, org, None)
        });
        made.await.unwrap()
    }

    fn fixed(keyring: &Keyring) -> KeySource {
        let keyring = keyring.clone();
        Arc::new(move || Ok(keyring.clone()))
    }

    async fn opened(signer: &Signer, made: &NewSecret, deadline: Duration) -> Result<String, Outcome> {
        let secret = signer.secret(made.secret.org_id, made.secret.id, deadline).await?;
        Ok(secret.plain().to_owned())
    }

    const KEY_MISSING: Outcome = Outcome::NotSent(LocalFailure::KeyMissing);

    #[tokio::test]
    async fn a_key_configured_since_the_start_is_found() {
        let database = TestDatabase::new(Engine::Sqlite);
        let store = database.store().await;
        let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
        let made = secret(&store, &[&new]).await;
        let signer = Signer::new(store, ring(&[&old]), fixed(&ring(&[&old, &new])));
        assert_eq!(opened(&signer, &made, SOON).await.unwrap(), made.plain_secret.plain());
    }

    #[tokio::test]
    async fn a_key_corrected_since_the_start_is_found() {
        let database = TestDatabase::new(Engine::Sqlite);
        let store = database.store().await;
        let (wrong, right) = (Keyring::generate("k"), Keyring::generate("k"));
        let made = secret(&store, &[&right]).await;
        let signer = Signer::new(store, ring(&[&wrong]), fixed(&ring(&[&right])));
        assert_eq!(opened(&signer, &made, SOON).await.unwrap(), made.plain_secret.plain());
    }

    #[tokio::test]
    async fn a_missing_key_is_looked_for_every_ten_seconds_and_is_a_local_failure() {
        let database = TestDatabase::new(Engine::Sqlite);
        let clock = Clock::manual(Timestamp::from_micros(1_000_000));
        let store = database.store_with_clock(clock.clone()).await;
        let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
        let made = secret(&store, &[&new]).await;
        let readings = Arc::new(AtomicUsize::new(0));
        let source: KeySource = {
            let (readings, found) = (readings.clone(), ring(&[&old, &new]));
            Arc::new(move || match readings.fetch_add(1, Ordering::Relaxed) {
                0 => Err("half a file".into()),
                _ => Ok(found.clone()),
            })
        };
        let signer = Signer::new(store, ring(&[&old]), source);
        for _ in 0..5 {
            assert_eq!(opened(&signer, &made, SOON).await, Err(KEY_MISSING));
        }
        assert_eq!(readings.load(Ordering::Relaxed), 1);
        clock.advance(KEYS_READ_EVERY);
        opened(&signer, &made, SOON).await.unwrap();
        assert_eq!(readings.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_secret_that_its_key_does_not_open_is_unavailable() {
        let database = TestDatabase::new(Engine::Sqlite);
        let store = database.store().await;
        let key = Keyring::generate("k");
        let mut made = secret(&store, &[&key]).await;
        database.execute("UPDATE signing_secrets SET sealed = x'00'");
        let signer = Signer::new(store, ring(&[&key]), fixed(&ring(&[&key])));
        for _ in 0..2 {
            let Err(Outcome::Failed(failure)) = opened(&signer, &made, SOON).await else { panic!() };
            assert_eq!(failure.reason, FailureReason::SigningUnavailable);
            made.secret.id = SecretId::new(made.secret.created_at); // one that does not exist
        }
    }

    #[tokio::test]
    async fn a_database_that_is_away_or_refuses_is_a_local_failure() {
        let database = TestDatabase::new(Engine::Postgres);
        let line = Proxy::start(database.server()).await;
        let store = Store::open(&database.url_through(line.addr), 2).await.unwrap();
        let key = Keyring::generate("k");
        let made = secret(&store, &[&key]).await;
        let signer = Signer::new(store.clone(), ring(&[&key]), fixed(&ring(&[&key])));
        database.execute("ALTER TABLE signing_secrets RENAME TO elsewhere");
        let refused = Err(Outcome::NotSent(LocalFailure::SecretUnread));
        assert_eq!(opened(&signer, &made, SOON).await, refused);
        drop(line);
        let deadline = store.clock().monotonic() + OUTAGE_PAUSE;
        let away = Err(Outcome::NotSent(LocalFailure::LeaseTooShort));
        assert_eq!(opened(&signer, &made, deadline).await, away);
    }
}

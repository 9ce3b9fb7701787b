//! Selection of the secrets that sign a request (contract section 2). The valid ones are read every few
//! seconds; each is decrypted once and cached.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use contracts::{FailureReason, OrgId, SecretId, Signing, SigningSecret};
use parking_lot::Mutex;
use store::{
    AnyConnection, Keyring, OpenError, Store, StoreError, ValidSecret, note_secret_used, signing_secrets,
};
use tokio::time::timeout;

use crate::signing::keys::{KeySource, Keys};
use engine::{LocalFailure, Outcome};

/// Reads which secrets are valid, decrypts them and caches them.
pub(crate) struct Signer {
    store: Store,
    keys: Keys,
    /// How long after a promotion requests are also signed with the previous secret.
    overlap: Duration,
    memory: Mutex<Memory>,
    /// Held by the attempt that reads, on behalf of all waiting ones.
    reading: tokio::sync::Mutex<()>,
}

/// An organization, and the secret with which one of its deliveries was frozen.
type Wanted = (OrgId, Option<SecretId>);

/// The cache. Not moka: ages are judged on the store's clock, and both maps are cleared together, since every secret
/// in `valid` is also in `opened`.
#[derive(Default)]
struct Memory {
    /// Never outdated: the secret of an id doesn't change.
    opened: HashMap<SecretId, Opened>,
    valid: HashMap<Wanted, Valid>,
    /// Entries that attempts are waiting for.
    wanted: HashSet<Wanted>,
}

struct Opened {
    secret: SigningSecret,
    /// When its use was last recorded, on the clock's monotonic time.
    noted: Option<Duration>,
}

/// The secrets that were valid for a delivery.
struct Valid {
    /// On the clock's monotonic time.
    read_at: Duration,
    secrets: Result<Secrets, Refusal>,
}

/// The secrets to sign with, in the order of `webhook-signature`. Empty: send unsigned.
#[derive(Default)]
struct Secrets {
    listed: Vec<SecretId>,
    /// Index of the secret for `Runflow-Signature`.
    main: usize,
}

/// Why a delivery can't be signed.
#[derive(Clone, Copy)]
enum Refusal {
    KeyMissing,
    DoesNotOpen,
}

/// Pause before an unavailable database is queried again for a secret.
const OUTAGE_PAUSE: Duration = Duration::from_millis(250);

/// Maximum age of the cached valid secrets. A disabled secret is not used any more after that.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Timeout of a read: its connection counts as silent after that, and another one is tried.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of entries read in one transaction.
const BATCH: usize = 256;

/// Maximum number of signatures of one request.
const MOST_LISTED: usize = 4;

/// How often the use of a secret is recorded: rarely enough not to be felt, and never in a delivery's
/// transaction.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// Size at which the cache is cleared. With so many organizations or secrets in use at once, that costs
/// little.
const REMEMBERED: usize = 10_000;

impl Signer {
    pub(crate) fn new(store: Store, keyring: Keyring, source: KeySource, overlap: Duration) -> Signer {
        let keys = Keys::new(keyring, source);
        Signer { store, keys, overlap, memory: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// Returns the secrets valid for a delivery frozen with `frozen`. `None`: the organization has no secret
    /// to sign with. The error is the outcome of an attempt whose secrets are unavailable. A database outage
    /// is retried until `deadline` on the clock's monotonic time. Keys are read again before a secret counts
    /// as not openable.
    pub(crate) async fn signing(
        &self,
        org: OrgId,
        frozen: Option<SecretId>,
        deadline: Duration,
    ) -> Result<Option<Signing>, Outcome> {
        let wanted = (org, frozen);
        if let Some(known) = self.remembered(wanted) {
            return known;
        }
        self.memory.lock().wanted.insert(wanted);
        let left = deadline.saturating_sub(self.store.clock().monotonic());
        let Ok(_turn) = timeout(left, self.reading.lock()).await else {
            tracing::warn!(%org, "signing secrets not read in time");
            return Err(Outcome::NotSent(LocalFailure::LeaseTooShort));
        };
        let mut batch = Vec::new();
        loop {
            if let Some(known) = self.remembered(wanted) {
                return known;
            }
            if batch.is_empty() {
                batch = self.gathered(wanted);
            }
            let read_at = self.store.clock().monotonic();
            let (keyring, reading) = self.keys.current().await;
            let secrets = match self.read(&batch).await {
                Ok(secrets) => secrets,
                Err(error) if error.is_outage() => {
                    if self.store.clock().monotonic() >= deadline {
                        tracing::warn!(%error, %org, "signing secrets not read in time");
                        return Err(Outcome::NotSent(LocalFailure::LeaseTooShort));
                    }
                    tokio::time::sleep(OUTAGE_PAUSE).await;
                    continue;
                }
                // An unreadable row must fail its own organization only.
                Err(_) if batch.len() > 1 => {
                    batch = vec![wanted];
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, %org, "signing secrets not read");
                    return Err(Outcome::NotSent(LocalFailure::SecretUnread));
                }
            };
            let refusals = self.open(&secrets, &keyring);
            if !refusals.is_empty() && self.keys.read_again(reading, self.store.clock().monotonic()).await {
                continue;
            }
            self.remember(&batch, &secrets, &refusals, read_at);
        }
    }

    /// Takes a batch of the waiting entries, `own` included. Never empty.
    fn gathered(&self, own: Wanted) -> Vec<Wanted> {
        let mut memory = self.memory.lock();
        memory.wanted.remove(&own);
        let others: Vec<Wanted> = memory.wanted.iter().copied().take(BATCH - 1).collect();
        for other in &others {
            memory.wanted.remove(other);
        }
        std::iter::once(own).chain(others).collect()
    }

    async fn read(&self, batch: &[Wanted]) -> Result<Vec<ValidSecret>, StoreError> {
        let (batch, demoted_after) = (batch.to_vec(), self.store.clock().now() - self.overlap);
        let read = self.store.read(move |tx: &mut AnyConnection| signing_secrets(tx, &batch, demoted_after));
        let silent = |_| StoreError::Unavailable("the database does not answer".into());
        timeout(READ_TIMEOUT, read).await.map_err(silent)?
    }

    /// Decrypts the secrets not cached yet, and returns the errors of those that don't open.
    fn open(&self, secrets: &[ValidSecret], keyring: &Keyring) -> HashMap<SecretId, OpenError> {
        let mut memory = self.memory.lock();
        if memory.opened.len().max(memory.valid.len()) >= REMEMBERED {
            *memory = Memory { wanted: std::mem::take(&mut memory.wanted), ..Memory::default() };
        }
        let mut refusals = HashMap::new();
        for secret in secrets {
            if memory.opened.contains_key(&secret.id) {
                continue;
            }
            match secret.open(keyring) {
                Ok(opened) => drop(memory.opened.insert(secret.id, Opened { secret: opened, noted: None })),
                Err(refusal) => drop(refusals.insert(secret.id, refusal)),
            }
        }
        refusals
    }

    fn remember(
        &self,
        batch: &[Wanted],
        secrets: &[ValidSecret],
        refusals: &HashMap<SecretId, OpenError>,
        read_at: Duration,
    ) {
        let mut of_org: HashMap<OrgId, Vec<&ValidSecret>> = HashMap::new();
        for secret in secrets {
            of_org.entry(secret.org_id).or_default().push(secret);
        }
        let mut memory = self.memory.lock();
        for (org, frozen) in batch {
            let known = of_org.get(org).map_or(&[][..], Vec::as_slice);
            let secrets = select(known, *frozen, refusals);
            // A missing key is logged elsewhere, once: it keeps attempts from being sent.
            if !matches!(secrets, Err(Refusal::KeyMissing)) {
                for secret in known {
                    if let Some(error) = refusals.get(&secret.id) {
                        tracing::error!(%error, secret_id = %secret.id, "signing secret not opened");
                    }
                }
            }
            memory.valid.insert((*org, *frozen), Valid { read_at, secrets });
        }
    }

    fn remembered(&self, wanted: Wanted) -> Option<Result<Option<Signing>, Outcome>> {
        let now = self.store.clock().monotonic();
        let mut memory = self.memory.lock();
        let Memory { opened, valid, .. } = &mut *memory;
        let valid = valid.get(&wanted).filter(|valid| now.saturating_sub(valid.read_at) < READ_EVERY)?;
        let Secrets { listed, main } = match &valid.secrets {
            Ok(secrets) => secrets,
            Err(refusal) => return Some(Err(refusal.outcome())),
        };
        let mut webhook = Vec::with_capacity(listed.len());
        for id in listed {
            let Opened { secret, noted } = opened.get_mut(id)?;
            webhook.push(secret.clone());
            if noted.is_none_or(|noted| now.saturating_sub(noted) >= NOTED_EVERY) {
                *noted = Some(now);
                self.note_use(*id);
            }
        }
        Some(Ok(webhook.get(*main).cloned().map(|runflow| Signing { runflow, webhook })))
    }

    fn note_use(&self, id: SecretId) {
        let store = self.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store.write(move |tx, now| note_secret_used(tx, now, id)).await {
                tracing::debug!(%error, secret_id = %id, "use of a signing secret not recorded");
            }
        });
    }
}

/// Selects the secrets for a delivery from those of its organization: the current one, the one it was frozen
/// with, and as many recently demoted ones as fit, newest first. A secret that doesn't open is left out,
/// unless `Runflow-Signature` needs it.
fn select(
    secrets: &[&ValidSecret],
    frozen: Option<SecretId>,
    refusals: &HashMap<SecretId, OpenError>,
) -> Result<Secrets, Refusal> {
    let is_frozen = |secret: &ValidSecret| Some(secret.id) == frozen;
    let Some(main) = secrets
        .iter()
        .find(|secret| is_frozen(secret))
        .or_else(|| secrets.iter().find(|secret| secret.is_current))
    else {
        return Ok(Secrets::default());
    };
    if let Some(refusal) = refusals.get(&main.id) {
        return Err(match refusal {
            OpenError::KeyMissing(_) => Refusal::KeyMissing,
            OpenError::DoesNotOpen(_) | OpenError::NotFound => Refusal::DoesNotOpen,
        });
    }
    let is_certain = |secret: &ValidSecret| secret.is_current || is_frozen(secret);
    let mut room = MOST_LISTED - secrets.iter().filter(|secret| is_certain(secret)).count();
    let mut listed = Vec::with_capacity(MOST_LISTED);
    for secret in secrets.iter().filter(|secret| !refusals.contains_key(&secret.id)) {
        if !is_certain(secret) {
            if secret.demoted_at.is_none() || room == 0 {
                continue;
            }
            room -= 1;
        }
        listed.push(secret.id);
    }
    let main = listed.iter().position(|id| *id == main.id).unwrap_or_default();
    Ok(Secrets { listed, main })
}

impl Refusal {
    fn outcome(self) -> Outcome {
        match self {
            Refusal::KeyMissing => Outcome::NotSent(LocalFailure::KeyMissing),
            Refusal::DoesNotOpen => {
                let detail = "the signing secret could not be opened with the keys at hand";
                Outcome::failed(FailureReason::SigningUnavailable, detail)
            }
        }
    }
}

#[cfg(test)]
mod tests;

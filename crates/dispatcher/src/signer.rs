//! Which secrets a request is signed with (contract section 2): read every few seconds, opened once and kept.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::{FailureReason, OrgId, SecretId, Signing, SigningSecret};
use store::{
    AnyConnection, Keyring, OpenError, Store, StoreError, ValidSecret, note_secret_used, signing_secrets,
};
use tokio::time::timeout;

use crate::OUTAGE_PAUSE;
use crate::keys::{KeySource, Keys};
use engine::{LocalFailure, Outcome};

/// Finds out which secrets are valid, opens them and remembers them.
pub(crate) struct Signer {
    store: Store,
    keys: Keys,
    /// How long after a promotion requests are signed with the secret before, too.
    overlap: Duration,
    memory: Mutex<Memory>,
    /// Held by the one attempt that reads, for all that wait.
    reading: tokio::sync::Mutex<()>,
}

/// An organization, and the secret that a delivery of its was frozen with.
type Wanted = (OrgId, Option<SecretId>);

/// Every secret of `valid` is among `opened`.
#[derive(Default)]
struct Memory {
    /// What an id stands for never changes.
    opened: HashMap<SecretId, Opened>,
    valid: HashMap<Wanted, Valid>,
    /// What attempts wait for.
    wanted: HashSet<Wanted>,
}

struct Opened {
    secret: SigningSecret,
    /// When its use was noted last, on the clock's monotonic time.
    noted: Option<Duration>,
}

/// What was valid for a delivery.
struct Valid {
    /// On the clock's monotonic time.
    read_at: Duration,
    secrets: Result<Secrets, Refusal>,
}

/// The secrets to sign with, in the order of `webhook-signature`; none: unsigned.
#[derive(Default)]
struct Secrets {
    listed: Vec<SecretId>,
    /// The index of the one of `Runflow-Signature`.
    main: usize,
}

/// Why a delivery can't be signed.
#[derive(Clone, Copy)]
enum Refusal {
    KeyMissing,
    DoesNotOpen,
}

/// How old an answer about valid secrets may be: a disabled secret is not signed with any more after that.
const READ_EVERY: Duration = Duration::from_secs(5);

/// After that a connection has gone silent, and another one is tried.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The most that is read in one transaction.
const BATCH: usize = 256;

/// The most signatures of one request.
const MOST_LISTED: usize = 4;

/// How often the use of a secret is noted: in no transaction of a delivery's, and seldom enough not to be felt.
const NOTED_EVERY: Duration = Duration::from_secs(60);

/// With more organizations or secrets than this in use at once, forgetting all of them costs little.
const REMEMBERED: usize = 10_000;

impl Signer {
    pub(crate) fn new(store: Store, keyring: Keyring, source: KeySource, overlap: Duration) -> Signer {
        let keys = Keys::new(keyring, source);
        Signer { store, keys, overlap, memory: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// Returns the secrets valid for a delivery frozen with `frozen`, `None` when there is none to sign with, or the
    /// outcome of the attempt that they can't be had for. A database outage is waited for until `deadline` on the
    /// clock's monotonic time. Before a secret is said not to open, the keys are read again.
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
        self.memory().wanted.insert(wanted);
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
                // A row that can't be read fails its own organization only.
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

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted now, `own` included; never empty.
    fn gathered(&self, own: Wanted) -> Vec<Wanted> {
        let mut memory = self.memory();
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

    /// Opens what was not opened before, and returns what does not open.
    fn open(&self, secrets: &[ValidSecret], keyring: &Keyring) -> HashMap<SecretId, OpenError> {
        let mut memory = self.memory();
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
        let mut memory = self.memory();
        for (org, frozen) in batch {
            let known = of_org.get(org).map_or(&[][..], Vec::as_slice);
            let secrets = select(known, *frozen, refusals);
            // A key that keeps attempts from being sent is logged once, as that.
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
        let mut memory = self.memory();
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
                tracing::debug!(%error, secret_id = %id, "the use of a signing secret was not noted");
            }
        });
    }
}

/// Chooses what a delivery is signed with from its organization's secrets: the current one, the one it was frozen with,
/// and as many as fit of those demoted lately, newest first. What does not open is left out, unless
/// `Runflow-Signature` needs it.
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

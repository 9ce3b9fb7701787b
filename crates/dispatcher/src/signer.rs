//! Which secrets a request is signed with (contract section 2): read every few seconds, opened once and kept.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::{FailureReason, OrgId, SecretId, Signing, SigningSecret};
use store::{
    AnyConnection, Keyring, OpenError, Store, StoreError, ValidSecret, note_secret_used, signing_secrets,
};
use tokio::time::timeout;

use crate::OUTAGE_PAUSE;
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
    use futures_util::poll;
    use store::{Clock, SecretUpdate, create_organization, create_secret, disable_secret, update_secret};
    use testkit::{Engine, Proxy, TestDatabase};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);
    const OVERLAP: Duration = Duration::from_secs(24 * 3600);

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

    /// A signer with those keys and no others to be found.
    fn signer(store: &Store, keys: &[&str]) -> Signer {
        Signer::new(store.clone(), ring(keys), fixed(&ring(keys)), OVERLAP)
    }

    /// The plain text of the secret of `Runflow-Signature`.
    async fn opened(signer: &Signer, made: &NewSecret, deadline: Duration) -> Result<String, Outcome> {
        let signing = signer.signing(made.secret.org_id, Some(made.secret.id), deadline).await?;
        Ok(signing.expect("there is a secret").runflow.plain().to_owned())
    }

    /// The plain texts of all secrets, the one of `Runflow-Signature` first.
    async fn all(signer: &Signer, org: OrgId, frozen: Option<&NewSecret>) -> Vec<String> {
        let signing = signer.signing(org, frozen.map(|made| made.secret.id), SOON).await.unwrap();
        let secrets = signing.into_iter().flat_map(|Signing { runflow, webhook }| {
            std::iter::once(runflow).chain(webhook).collect::<Vec<_>>()
        });
        secrets.map(|secret| secret.plain().to_owned()).collect()
    }

    fn plain<const N: usize>(secrets: [&NewSecret; N]) -> Vec<String> {
        secrets.map(|made| made.plain_secret.plain().to_owned()).into()
    }

    /// Another secret of the same organization.
    async fn another(store: &Store, key: &str, first: &NewSecret) -> NewSecret {
        let (keyring, org) = (ring(&[key]), first.secret.org_id);
        store.write(move |tx, now| create_secret(tx, now, &keyring, org, None)).await.unwrap()
    }

    async fn promote(store: &Store, made: &NewSecret) {
        let (org, id) = (made.secret.org_id, made.secret.id);
        let update = SecretUpdate { label: None, promote: true };
        store.write(move |tx, now| update_secret(tx, now, org, id, &update)).await.unwrap();
    }

    async fn disable(store: &Store, made: &NewSecret) {
        let (org, id) = (made.secret.org_id, made.secret.id);
        assert!(store.write(move |tx, now| disable_secret(tx, now, org, id)).await.unwrap());
    }

    /// A database with a clock that stands still.
    async fn still(database: &TestDatabase) -> (Store, Clock) {
        let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
        (database.store_with_clock(clock.clone()).await, clock)
    }

    const KEY_MISSING: Outcome = Outcome::NotSent(LocalFailure::KeyMissing);

    #[tokio::test]
    async fn a_key_configured_since_the_start_is_found() {
        let database = TestDatabase::new(Engine::Sqlite);
        let store = database.store().await;
        let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
        let made = secret(&store, &[&new]).await;
        let signer = Signer::new(store, ring(&[&old]), fixed(&ring(&[&old, &new])), OVERLAP);
        assert_eq!(opened(&signer, &made, SOON).await.unwrap(), made.plain_secret.plain());
    }

    #[tokio::test]
    async fn a_key_corrected_since_the_start_is_found() {
        let database = TestDatabase::new(Engine::Sqlite);
        let store = database.store().await;
        let (wrong, right) = (Keyring::generate("k"), Keyring::generate("k"));
        let made = secret(&store, &[&right]).await;
        let signer = Signer::new(store, ring(&[&wrong]), fixed(&ring(&[&right])), OVERLAP);
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
        let signer = Signer::new(store, ring(&[&old]), source, OVERLAP);
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
        let signer = Signer::new(store, ring(&[&key]), fixed(&ring(&[&key])), OVERLAP);
        for _ in 0..2 {
            let Err(Outcome::Failed(failure)) = opened(&signer, &made, SOON).await else { panic!() };
            assert_eq!(failure.reason, FailureReason::SigningUnavailable);
            made.secret.id = SecretId::new(made.secret.created_at); // one that does not exist: the current one's turn
        }
    }

    #[tokio::test]
    async fn a_database_that_is_away_or_refuses_is_a_local_failure() {
        let database = TestDatabase::new(Engine::Postgres);
        let line = Proxy::start(database.server()).await;
        let store = Store::open(&database.url_through(line.addr), 2).await.unwrap();
        let key = Keyring::generate("k");
        let made = secret(&store, &[&key]).await;
        let signer = Signer::new(store.clone(), ring(&[&key]), fixed(&ring(&[&key])), OVERLAP);
        database.execute("ALTER TABLE signing_secrets RENAME TO elsewhere");
        let refused = Err(Outcome::NotSent(LocalFailure::SecretUnread));
        assert_eq!(opened(&signer, &made, SOON).await, refused);
        drop(line);
        let deadline = store.clock().monotonic() + OUTAGE_PAUSE;
        let away = Err(Outcome::NotSent(LocalFailure::LeaseTooShort));
        assert_eq!(opened(&signer, &made, deadline).await, away);
    }

    #[tokio::test]
    async fn the_current_secret_signs_and_the_one_before_within_the_overlap_or_while_something_is_frozen_with_it()
     {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, clock) = still(&database).await;
        let key = Keyring::generate("k");
        let first = secret(&store, &[&key]).await;
        let org = first.secret.org_id;
        let second = another(&store, &key, &first).await;
        promote(&store, &second).await;
        let signer = signer(&store, &[&key]);
        assert_eq!(all(&signer, org, None).await, plain([&second, &second, &first]));
        assert_eq!(all(&signer, org, Some(&second)).await, plain([&second, &second, &first]));
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&first, &second, &first]));
        clock.advance(OVERLAP);
        assert_eq!(all(&signer, org, None).await, plain([&second, &second]));
        assert_eq!(all(&signer, org, Some(&second)).await, plain([&second, &second]));
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&first, &second, &first]));
    }

    #[tokio::test]
    async fn a_secret_disabled_since_is_signed_with_for_five_seconds_and_the_current_one_from_then_on() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, clock) = still(&database).await;
        let key = Keyring::generate("k");
        let first = secret(&store, &[&key]).await;
        let (org, signer) = (first.secret.org_id, signer(&store, &[&key]));
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&first, &first]));
        let second = another(&store, &key, &first).await;
        disable(&store, &first).await;
        clock.advance(READ_EVERY - Duration::from_micros(1));
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&first, &first]));
        clock.advance(Duration::from_micros(1));
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&second, &second]));
        disable(&store, &second).await;
        clock.advance(READ_EVERY);
        assert_eq!(all(&signer, org, Some(&first)).await, plain([]), "no secret is left: unsigned");
        assert_eq!(all(&signer, org, None).await, plain([]));
        let third = another(&store, &key, &first).await;
        clock.advance(READ_EVERY);
        assert_eq!(all(&signer, org, None).await, plain([&third, &third]));
    }

    #[tokio::test]
    async fn at_most_four_secrets_sign_the_current_and_the_frozen_one_among_them() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, clock) = still(&database).await;
        let key = Keyring::generate("k");
        let mut made = vec![secret(&store, &[&key]).await];
        for _ in 0..5 {
            let next = another(&store, &key, &made[0]).await;
            clock.advance(Duration::from_secs(1));
            promote(&store, &next).await;
            made.push(next);
        }
        let [oldest, _, c, d, e, current] = &made[..] else { panic!() };
        let (org, signer) = (oldest.secret.org_id, signer(&store, &[&key]));
        assert_eq!(all(&signer, org, None).await, plain([current, current, e, d, c]));
        assert_eq!(all(&signer, org, Some(d)).await, plain([d, current, e, d, c]));
        assert_eq!(all(&signer, org, Some(oldest)).await, plain([oldest, current, e, d, oldest]));
    }

    #[tokio::test]
    async fn of_an_overlap_what_does_not_open_is_left_out_unless_runflow_signature_needs_it() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, _) = still(&database).await;
        let (key, lost) = (Keyring::generate("k"), Keyring::generate("lost"));
        let first = secret(&store, &[&key]).await;
        let (org, second) = (first.secret.org_id, another(&store, &lost, &first).await);
        promote(&store, &second).await;
        let signer = signer(&store, &[&key]);
        assert_eq!(all(&signer, org, Some(&first)).await, plain([&first, &first]));
        assert_eq!(opened(&signer, &second, SOON).await, Err(KEY_MISSING));
        assert_eq!(signer.signing(org, None, SOON).await.map(drop), Err(KEY_MISSING));
    }

    #[tokio::test]
    async fn what_is_known_needs_no_database_for_five_seconds() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, clock) = still(&database).await;
        let key = Keyring::generate("k");
        let made = secret(&store, &[&key]).await;
        let signer = signer(&store, &[&key]);
        opened(&signer, &made, SOON).await.unwrap();
        database.execute("ALTER TABLE signing_secrets RENAME TO elsewhere");
        clock.advance(READ_EVERY - Duration::from_micros(1));
        opened(&signer, &made, SOON).await.unwrap();
        clock.advance(Duration::from_micros(1));
        let refused = Err(Outcome::NotSent(LocalFailure::SecretUnread));
        assert_eq!(opened(&signer, &made, SOON).await, refused);
    }

    #[tokio::test]
    async fn attempts_that_wait_at_once_share_one_reading_whosever_they_are() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, _) = still(&database).await;
        let key = Keyring::generate("k");
        let mut made = Vec::new();
        for _ in 0..20 {
            made.push(secret(&store, &[&key]).await);
        }
        let signer = signer(&store, &[&key]);
        let turn = signer.reading.lock().await;
        let mut attempts: Vec<_> = (0..100).map(|n| Box::pin(opened(&signer, &made[n % 20], SOON))).collect();
        for attempt in &mut attempts {
            assert!(poll!(attempt).is_pending());
        }
        drop(turn);
        let mut attempts = attempts.into_iter().enumerate();
        let (_, first) = attempts.next().unwrap();
        first.await.unwrap();
        database.execute("ALTER TABLE signing_secrets RENAME TO elsewhere");
        for (n, attempt) in attempts {
            assert_eq!(attempt.await.unwrap(), made[n % 20].plain_secret.plain());
        }
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_fails_its_own_organization_only() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, _) = still(&database).await;
        let key = Keyring::generate("k");
        let broken = secret(&store, &[&key]).await;
        database.execute("UPDATE signing_secrets SET id = x'00'");
        let made = secret(&store, &[&key]).await;
        let signer = signer(&store, &[&key]);
        let turn = signer.reading.lock().await;
        let mut signed = Box::pin(opened(&signer, &made, SOON));
        let mut refused = Box::pin(opened(&signer, &broken, SOON));
        assert!(poll!(&mut signed).is_pending() && poll!(&mut refused).is_pending());
        drop(turn);
        assert_eq!(signed.await.unwrap(), made.plain_secret.plain());
        assert_eq!(refused.await, Err(Outcome::NotSent(LocalFailure::SecretUnread)));
    }

    #[tokio::test]
    async fn a_database_that_falls_silent_is_waited_for_until_the_deadline() {
        let database = TestDatabase::new(Engine::Postgres);
        let line = Proxy::start(database.server()).await;
        let store = Store::open(&database.url_through(line.addr), 2).await.unwrap();
        let key = Keyring::generate("k");
        let made = secret(&store, &[&key]).await;
        let signer = signer(&store, &[&key]);
        line.freeze();
        let attempt = opened(&signer, &made, store.clock().monotonic());
        let ended = timeout(3 * READ_TIMEOUT, attempt).await.expect("no longer than one reading may take");
        assert_eq!(ended, Err(Outcome::NotSent(LocalFailure::LeaseTooShort)));
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let database = TestDatabase::new(Engine::Sqlite);
        let (store, clock) = still(&database).await;
        let key = Keyring::generate("k");
        let made = secret(&store, &[&key]).await;
        let signer = signer(&store, &[&key]);
        for _ in 0..REMEMBERED {
            let org = OrgId(uuid::Uuid::new_v4());
            let valid = Valid { read_at: clock.monotonic(), secrets: Ok(Secrets::default()) };
            signer.memory().valid.insert((org, None), valid);
        }
        opened(&signer, &made, SOON).await.unwrap();
        assert_eq!(signer.memory().valid.len(), 1);
    }
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use contracts::{NewSecret, Timestamp};
use futures_util::poll;
use store::{Clock, SecretUpdate, create_organization, create_secret, disable_secret, update_secret};
use testkit::{Backend, Proxy, TestDatabase};

use super::*;
use crate::signing::keys::KEYS_READ_EVERY;

const SOON: Duration = Duration::from_secs(60);
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

fn ring(keys: &[&str]) -> Keyring {
    Keyring::parse(keys).unwrap()
}

/// Creates an organization with a secret sealed with the first of `keys`.
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

/// Creates a signer with `keys`, whose key source has no others.
fn signer(store: &Store, keys: &[&str]) -> Signer {
    Signer::new(store.clone(), ring(keys), fixed(&ring(keys)), OVERLAP)
}

/// Returns the plain text of the secret for `Runflow-Signature`.
async fn opened(signer: &Signer, made: &NewSecret, deadline: Duration) -> Result<String, Outcome> {
    let signing = signer.signing(made.secret.org_id, Some(made.secret.id), deadline).await?;
    Ok(signing.expect("there is a secret").runflow.plain().to_owned())
}

/// Returns the plain texts of all secrets, that of `Runflow-Signature` first.
async fn all(signer: &Signer, org: OrgId, frozen: Option<&NewSecret>) -> Vec<String> {
    let signing = signer.signing(org, frozen.map(|made| made.secret.id), SOON).await.unwrap();
    let secrets = signing
        .into_iter()
        .flat_map(|Signing { runflow, webhook }| std::iter::once(runflow).chain(webhook).collect::<Vec<_>>());
    secrets.map(|secret| secret.plain().to_owned()).collect()
}

fn plain<const N: usize>(secrets: [&NewSecret; N]) -> Vec<String> {
    secrets.map(|made| made.plain_secret.plain().to_owned()).into()
}

/// Creates another secret for the organization of `first`.
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

/// Opens the database with a clock that only the test advances.
async fn still(database: &TestDatabase) -> (Store, Clock) {
    let clock = Clock::manual(Timestamp::from_micros(1_800_000_000_000_000));
    (database.store_with_clock(clock.clone()).await, clock)
}

const KEY_MISSING: Outcome = Outcome::NotSent(LocalFailure::KeyMissing);

#[tokio::test]
async fn a_key_configured_since_the_start_is_found() {
    let database = TestDatabase::new(Backend::Sqlite);
    let store = database.store().await;
    let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
    let made = secret(&store, &[&new]).await;
    let signer = Signer::new(store, ring(&[&old]), fixed(&ring(&[&old, &new])), OVERLAP);
    assert_eq!(opened(&signer, &made, SOON).await.unwrap(), made.plain_secret.plain());
}

#[tokio::test]
async fn a_key_corrected_since_the_start_is_found() {
    let database = TestDatabase::new(Backend::Sqlite);
    let store = database.store().await;
    let (wrong, right) = (Keyring::generate("k"), Keyring::generate("k"));
    let made = secret(&store, &[&right]).await;
    let signer = Signer::new(store, ring(&[&wrong]), fixed(&ring(&[&right])), OVERLAP);
    assert_eq!(opened(&signer, &made, SOON).await.unwrap(), made.plain_secret.plain());
}

#[tokio::test]
async fn a_missing_key_is_a_local_failure_and_keys_are_read_again_every_ten_seconds() {
    let database = TestDatabase::new(Backend::Sqlite);
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
    let database = TestDatabase::new(Backend::Sqlite);
    let store = database.store().await;
    let key = Keyring::generate("k");
    let mut made = secret(&store, &[&key]).await;
    database.execute("UPDATE signing_secrets SET sealed = x'00'");
    let signer = Signer::new(store, ring(&[&key]), fixed(&ring(&[&key])), OVERLAP);
    for _ in 0..2 {
        let Err(Outcome::Failed(failure)) = opened(&signer, &made, SOON).await else { panic!() };
        assert_eq!(failure.reason, FailureReason::SigningUnavailable);
        made.secret.id = SecretId::new(made.secret.created_at); // unknown id: the current secret is used
    }
}

#[tokio::test]
async fn a_database_outage_or_refusal_is_a_local_failure() {
    let database = TestDatabase::new(Backend::Postgres);
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
async fn the_previous_secret_also_signs_within_the_overlap_or_for_deliveries_frozen_with_it() {
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn a_disabled_secret_signs_for_five_more_seconds_and_the_current_one_after_that() {
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn at_most_four_secrets_sign_including_the_current_and_the_frozen_one() {
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn a_secret_that_does_not_open_is_left_out_unless_runflow_signature_needs_it() {
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn cached_secrets_need_no_database_for_five_seconds() {
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn waiting_attempts_of_all_organizations_share_one_read() {
    let database = TestDatabase::new(Backend::Sqlite);
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
    let database = TestDatabase::new(Backend::Sqlite);
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
async fn a_silent_database_is_retried_until_the_deadline() {
    let database = TestDatabase::new(Backend::Postgres);
    let line = Proxy::start(database.server()).await;
    let store = Store::open(&database.url_through(line.addr), 2).await.unwrap();
    let key = Keyring::generate("k");
    let made = secret(&store, &[&key]).await;
    let signer = signer(&store, &[&key]);
    line.freeze();
    let attempt = opened(&signer, &made, store.clock().monotonic());
    let ended = timeout(3 * READ_TIMEOUT, attempt).await.expect("the attempt ends when its read does");
    assert_eq!(ended, Err(Outcome::NotSent(LocalFailure::LeaseTooShort)));
}

#[tokio::test]
async fn the_cache_is_bounded() {
    let database = TestDatabase::new(Backend::Sqlite);
    let (store, clock) = still(&database).await;
    let key = Keyring::generate("k");
    let made = secret(&store, &[&key]).await;
    let signer = signer(&store, &[&key]);
    for _ in 0..REMEMBERED {
        let org = OrgId(uuid::Uuid::new_v4());
        let valid = Valid { read_at: clock.monotonic(), secrets: Ok(Secrets::default()) };
        signer.memory.lock().valid.insert((org, None), valid);
    }
    opened(&signer, &made, SOON).await.unwrap();
    assert_eq!(signer.memory.lock().valid.len(), 1);
}

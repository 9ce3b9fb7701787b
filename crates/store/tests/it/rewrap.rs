//! Key changes and missing keys.

use ::store::{
    Keyring, MissingKey, create_secret, disable_secret, missing_keys, open_secret, open_secrets,
    rewrap_secrets,
};
use contracts::NewSecret;
use testkit::Backend;

use crate::stage::Stage;

testkit::on_both_backends!(
    secrets_are_sealed_with_the_first_key_and_then_open_without_the_others,
    a_secret_that_no_key_opens_is_reported_and_unchanged,
    a_missing_key_is_reported_before_it_is_needed,
    a_key_of_deleted_secrets_only_is_not_needed,
    every_secret_is_opened_up_to_a_limit_and_enabled_ones_first,
);

fn ring(keys: &[&str]) -> Keyring {
    Keyring::parse(keys).unwrap()
}

fn create(stage: &mut Stage, ring: &Keyring) -> NewSecret {
    create_secret(&mut stage.conn, stage.now, ring, stage.org, None).unwrap()
}

async fn secrets_are_sealed_with_the_first_key_and_then_open_without_the_others(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (old, new) = (Keyring::generate("old"), Keyring::generate("new"));
    let made: Vec<NewSecret> = (0..120).map(|_| create(&mut stage, &ring(&[&old]))).collect(); // more than one batch
    let both = ring(&[&new, &old]);
    let first = rewrap_secrets(&mut stage.conn, &both, None).unwrap();
    assert_eq!((first.rewrapped, first.unopened.len()), (100, 0));
    let second = rewrap_secrets(&mut stage.conn, &both, first.behind).unwrap();
    assert_eq!((second.rewrapped, second.unopened.len()), (20, 0));
    let again = rewrap_secrets(&mut stage.conn, &both, None).unwrap();
    assert_eq!((again.rewrapped, again.behind), (0, None));
    for secret in made {
        let id = secret.secret.id;
        let opened = open_secret(&mut stage.conn, &ring(&[&new]), stage.org, id).unwrap().unwrap();
        assert_eq!(opened.plain(), secret.plain_secret.plain());
    }
    assert_eq!(missing_keys(&mut stage.conn, &ring(&[&new])).unwrap(), []);
}

async fn a_secret_that_no_key_opens_is_reported_and_unchanged(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (old, new) = (ring(&[&Keyring::generate("old")]), ring(&[&Keyring::generate("new")]));
    let made = create(&mut stage, &old).secret;
    let done = rewrap_secrets(&mut stage.conn, &new, None).unwrap();
    assert_eq!(done.rewrapped, 0);
    assert_eq!((done.unopened[0].id, done.unopened[0].org_id), (made.id, made.org_id));
    assert_eq!(done.unopened[0].key_id, "old");
    open_secret(&mut stage.conn, &old, stage.org, made.id).unwrap().unwrap();
}

async fn a_missing_key_is_reported_before_it_is_needed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (old, namesake) = (Keyring::generate("k"), Keyring::generate("k"));
    assert_eq!(missing_keys(&mut stage.conn, &ring(&[&old])).unwrap(), []);
    for _ in 0..3 {
        create(&mut stage, &ring(&[&old]));
    }
    assert_eq!(missing_keys(&mut stage.conn, &ring(&[&old])).unwrap(), []);
    for other in [namesake, Keyring::generate("other")] {
        let missing = missing_keys(&mut stage.conn, &ring(&[&other])).unwrap();
        let [MissingKey { key_id, secrets: 3, needed: true, .. }] = &missing[..] else {
            panic!("{missing:?}")
        };
        assert_eq!(key_id, "k");
    }
}

async fn a_key_of_deleted_secrets_only_is_not_needed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (old, new) = (ring(&[&Keyring::generate("old")]), ring(&[&Keyring::generate("new")]));
    let made = create(&mut stage, &old).secret;
    stage.accept(); // accepted with it, signed with the current one after its deletion
    let needed = |stage: &mut Stage| missing_keys(&mut stage.conn, &new).unwrap()[0].needed;
    assert!(needed(&mut stage));
    assert!(disable_secret(&mut stage.conn, stage.now, stage.org, made.id).unwrap());
    assert!(!needed(&mut stage));
}

/// The first secret of a key may open while others of the same name don't.
async fn every_secret_is_opened_up_to_a_limit_and_enabled_ones_first(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (own, namesake) = (ring(&[&Keyring::generate("k")]), ring(&[&Keyring::generate("k")]));
    let disabled = create(&mut stage, &own).secret;
    create(&mut stage, &own);
    create(&mut stage, &namesake);
    assert!(disable_secret(&mut stage.conn, stage.now, stage.org, disabled.id).unwrap());
    let opened = open_secrets(&mut stage.conn, &own, 10).unwrap();
    assert_eq!((opened.stored, opened.tried), (3, 3));
    let [MissingKey { secrets: 1, needed: true, .. }] = &opened.missing[..] else { panic!("{opened:?}") };
    let opened = open_secrets(&mut stage.conn, &namesake, 10).unwrap();
    let [MissingKey { secrets: 2, needed: true, .. }] = &opened.missing[..] else { panic!("{opened:?}") };
    let opened = open_secrets(&mut stage.conn, &namesake, 2).unwrap();
    assert_eq!((opened.stored, opened.tried), (3, 2));
    let [MissingKey { secrets: 1, needed: true, .. }] = &opened.missing[..] else { panic!("{opened:?}") };
}

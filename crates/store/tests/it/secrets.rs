//! Signing secrets.

use std::sync::Arc;
use std::time::Duration;

use ::store::{Keyring, OpenError, create_secret, find_secret, note_secret_used, open_secret};
use contracts::SecretId;
use testkit::{Engine, keyring};

use crate::stage::{Stage, accepted, at_once, on_both_engines};

on_both_engines!(
    the_first_secret_becomes_current_and_later_ones_do_not,
    of_first_secrets_made_at_once_exactly_one_is_current,
    each_organization_has_its_own_current_secret,
    a_secret_opens_with_its_key_and_for_its_organization_only,
    a_secrets_plain_text_and_key_are_nowhere_in_the_database,
    a_delivery_is_frozen_with_the_current_secret,
    the_use_of_a_secret_is_noted_at_most_once_a_minute,
);

async fn the_first_secret_becomes_current_and_later_ones_do_not(engine: Engine) {
    let mut stage = Stage::new(engine);
    let ring = keyring();
    let mut create =
        || create_secret(&mut stage.conn, stage.now, &ring, stage.org, Some("a".into())).unwrap();
    let (first, second) = (create(), create());
    assert!(first.secret.is_current && !second.secret.is_current);
    assert_eq!(first.secret.label.as_deref(), Some("a"));
    assert!(first.plain_secret.plain().starts_with(&first.secret.key_prefix));
    assert_ne!(first.plain_secret.plain(), second.plain_secret.plain());
    assert_eq!(stage.number("SELECT count(*) FROM signing_secrets WHERE is_current"), 1);
}

async fn of_first_secrets_made_at_once_exactly_one_is_current(engine: Engine) {
    let stage = Stage::new(engine);
    let (org, ring) = (stage.org, Arc::new(keyring()));
    let made =
        at_once(&stage.store().await, 8, move |tx, now| create_secret(tx, now, &ring, org, None)).await;
    assert_eq!(made.iter().filter(|made| made.secret.is_current).count(), 1);
}

async fn each_organization_has_its_own_current_secret(engine: Engine) {
    let mut stage = Stage::new(engine);
    let other = stage.other_org();
    let ring = keyring();
    for org in [stage.org, other] {
        assert!(create_secret(&mut stage.conn, stage.now, &ring, org, None).unwrap().secret.is_current);
    }
}

async fn a_secret_opens_with_its_key_and_for_its_organization_only(engine: Engine) {
    let mut stage = Stage::new(engine);
    let other = stage.other_org();
    let (org, ring) = (stage.org, keyring());
    let made = create_secret(&mut stage.conn, stage.now, &ring, org, None).unwrap();
    let id = made.secret.id;
    let opened = open_secret(&mut stage.conn, &ring, org, id).unwrap().unwrap();
    assert_eq!(opened.plain(), made.plain_secret.plain());
    let mut refused = |ring, org, id| open_secret(&mut stage.conn, ring, org, id).unwrap().unwrap_err();
    let namesake = keyring();
    let stranger = Keyring::parse(&[Keyring::generate("other").as_str()]).unwrap();
    assert_eq!(refused(&stranger, org, id), OpenError::KeyMissing("test".into()));
    assert_eq!(refused(&namesake, org, id), OpenError::DoesNotOpen("test".into()));
    assert_eq!(refused(&ring, other, id), OpenError::NotFound);
    assert_eq!(refused(&ring, org, SecretId::new(stage.now)), OpenError::NotFound);

    // Moved to another row it does not open, whoever moved it.
    let stranger = create_secret(&mut stage.conn, stage.now, &ring, other, None).unwrap().secret.id;
    stage
        .sql("UPDATE signing_secrets SET sealed = (SELECT sealed FROM signing_secrets ORDER BY id LIMIT 1)")
        .unwrap();
    let opens = [(org, id), (other, stranger)]
        .map(|(org, id)| open_secret(&mut stage.conn, &ring, org, id).unwrap().is_ok());
    assert_eq!(opens.iter().filter(|opens| **opens).count(), 1);
}

async fn a_secrets_plain_text_and_key_are_nowhere_in_the_database(engine: Engine) {
    let mut stage = Stage::new(engine);
    let made = create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap();
    let delivery = stage.accept();
    assert_eq!(delivery.signing_secret_id, Some(made.secret.id));
    assert!(stage.holds(made.secret.key_prefix.as_bytes()), "the search finds what is there");
    assert!(!stage.holds(&made.plain_secret.plain().as_bytes()["whsec_".len()..]));
    assert!(!stage.holds(made.plain_secret.key()));
}

async fn a_delivery_is_frozen_with_the_current_secret(engine: Engine) {
    let mut stage = Stage::new(engine);
    let run = stage.run();
    assert_eq!(accepted(stage.redeliver(run)).signing_secret_id, None);
    let first = create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap().secret.id;
    create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap();
    assert_eq!(stage.accept().signing_secret_id, Some(first));
    assert_eq!(stage.claim_due(9), []);
    stage.advance(crate::stage::GRACE);
    let mut frozen: Vec<_> = stage.claim_due(9).iter().map(|claimed| claimed.signing_secret_id).collect();
    frozen.sort_unstable();
    assert_eq!(frozen, [None, Some(first)]);
}

async fn the_use_of_a_secret_is_noted_at_most_once_a_minute(engine: Engine) {
    let mut stage = Stage::new(engine);
    let made = create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap().secret;
    assert_eq!(made.last_used_at, None);
    let first = stage.now;
    for (after, noted) in [(0, first), (59_999_999, first), (1, first + Duration::from_secs(60))] {
        stage.advance(Duration::from_micros(after));
        note_secret_used(&mut stage.conn, stage.now, made.id).unwrap();
        let secret = find_secret(&mut stage.conn, stage.org, made.id).unwrap().unwrap();
        assert_eq!((secret.last_used_at, secret.updated_at), (Some(noted), made.updated_at));
    }
}

//! Signing secrets.

use std::sync::Arc;
use std::time::Duration;

use ::store::{
    Keyring, OpenError, SecretUpdate, UpdatedSecret, create_secret, disable_secret, find_secret,
    note_secret_used, open_secret, signing_secrets, update_secret,
};
use contracts::{SecretId, Timestamp};
use testkit::{Backend, keyring};

use crate::stage::{Stage, accepted, at_once};

testkit::on_both_backends!(
    the_first_secret_becomes_current_and_later_ones_do_not,
    of_first_secrets_created_concurrently_exactly_one_is_current,
    each_organization_has_its_own_current_secret,
    a_secret_opens_with_its_key_and_for_its_organization_only,
    a_secrets_plain_text_and_key_are_nowhere_in_the_database,
    a_delivery_is_accepted_with_the_current_secret,
    the_use_of_a_secret_is_recorded_at_most_once_a_minute,
    the_promoted_secret_signs_requests_and_so_does_the_previous_one_within_the_overlap,
    a_secret_that_is_current_again_has_no_demotion,
    disabled_and_unrelated_secrets_do_not_sign_requests,
    of_demoted_secrets_the_newest_three_sign_requests,
    disabling_a_secret_leaves_no_demotion_and_makes_its_successor_current,
    the_secrets_of_many_organizations_are_read_together_and_each_opens,
);

async fn the_first_secret_becomes_current_and_later_ones_do_not(backend: Backend) {
    let mut stage = Stage::new(backend);
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

async fn of_first_secrets_created_concurrently_exactly_one_is_current(backend: Backend) {
    let stage = Stage::new(backend);
    let (org, ring) = (stage.org, Arc::new(keyring()));
    let made =
        at_once(&stage.store().await, 8, move |tx, now| create_secret(tx, now, &ring, org, None)).await;
    assert_eq!(made.iter().filter(|made| made.secret.is_current).count(), 1);
}

async fn each_organization_has_its_own_current_secret(backend: Backend) {
    let mut stage = Stage::new(backend);
    let other = stage.other_org();
    let ring = keyring();
    for org in [stage.org, other] {
        assert!(create_secret(&mut stage.conn, stage.now, &ring, org, None).unwrap().secret.is_current);
    }
}

async fn a_secret_opens_with_its_key_and_for_its_organization_only(backend: Backend) {
    let mut stage = Stage::new(backend);
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

    // Moved to another row, it does not open.
    let stranger = create_secret(&mut stage.conn, stage.now, &ring, other, None).unwrap().secret.id;
    stage
        .sql("UPDATE signing_secrets SET sealed = (SELECT sealed FROM signing_secrets ORDER BY id LIMIT 1)")
        .unwrap();
    let opens = [(org, id), (other, stranger)]
        .map(|(org, id)| open_secret(&mut stage.conn, &ring, org, id).unwrap().is_ok());
    assert_eq!(opens.iter().filter(|opens| **opens).count(), 1);
}

async fn a_secrets_plain_text_and_key_are_nowhere_in_the_database(backend: Backend) {
    let mut stage = Stage::new(backend);
    let made = create_secret(&mut stage.conn, stage.now, &keyring(), stage.org, None).unwrap();
    let delivery = stage.accept();
    assert_eq!(delivery.signing_secret_id, Some(made.secret.id));
    assert!(stage.holds(made.secret.key_prefix.as_bytes()), "the search finds what is there");
    assert!(!stage.holds(&made.plain_secret.plain().as_bytes()["whsec_".len()..]));
    assert!(!stage.holds(made.plain_secret.key()));
}

async fn a_delivery_is_accepted_with_the_current_secret(backend: Backend) {
    let mut stage = Stage::new(backend);
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

async fn the_use_of_a_secret_is_recorded_at_most_once_a_minute(backend: Backend) {
    let mut stage = Stage::new(backend);
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

const OVERLAP: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);

impl Stage {
    /// Creates a secret, one second later.
    fn secret(&mut self) -> SecretId {
        self.advance(SECOND);
        create_secret(&mut self.conn, self.now, &keyring(), self.org, None).unwrap().secret.id
    }

    /// Promotes a secret, one second later.
    fn promote(&mut self, id: SecretId) {
        self.advance(SECOND);
        let update = SecretUpdate { label: None, promote: true };
        let updated = update_secret(&mut self.conn, self.now, self.org, id, &update).unwrap();
        assert!(matches!(updated, UpdatedSecret::Updated(secret) if secret.is_current));
    }

    fn disable(&mut self, id: SecretId) {
        self.advance(SECOND);
        assert!(disable_secret(&mut self.conn, self.now, self.org, id).unwrap());
    }

    /// Returns the secrets that sign a request whose delivery was accepted with `frozen`: their ids, whether
    /// they are current, and when they were demoted.
    fn valid(&mut self, frozen: Option<SecretId>) -> Vec<(SecretId, bool, Option<Timestamp>)> {
        let (org, after) = (self.org, self.now - OVERLAP);
        let secrets = signing_secrets(&mut self.conn, &[(org, frozen)], after).unwrap();
        assert!(secrets.iter().all(|secret| secret.org_id == org));
        secrets.iter().map(|secret| (secret.id, secret.is_current, secret.demoted_at)).collect()
    }
}

async fn the_promoted_secret_signs_requests_and_so_does_the_previous_one_within_the_overlap(
    backend: Backend,
) {
    let mut stage = Stage::new(backend);
    assert_eq!(stage.valid(None), []);
    let (first, second) = (stage.secret(), stage.secret());
    assert_eq!(stage.valid(None), [(first, true, None)]);
    assert_eq!(stage.valid(Some(second)), [(first, true, None), (second, false, None)], "named");
    stage.promote(second);
    let promoted = stage.now;
    let both = [(second, true, None), (first, false, Some(promoted))];
    let label = SecretUpdate { label: Some(Some("old".into())), promote: false };
    update_secret(&mut stage.conn, stage.now, stage.org, first, &label).unwrap();
    stage.promote(second); // already current
    for frozen in [None, Some(first), Some(second)] {
        assert_eq!(stage.valid(frozen), both, "{frozen:?}");
    }
    stage.now = promoted + OVERLAP - Duration::from_micros(1);
    assert_eq!(stage.valid(None), both);
    stage.now = promoted + OVERLAP;
    assert_eq!(stage.valid(None), [(second, true, None)]);
    assert_eq!(stage.valid(Some(first)), [(second, true, None), (first, false, None)], "still enabled");
}

async fn a_secret_that_is_current_again_has_no_demotion(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (first, second) = (stage.secret(), stage.secret());
    stage.promote(second);
    stage.promote(first);
    assert_eq!(stage.valid(None), [(first, true, None), (second, false, Some(stage.now))]);
}

async fn disabled_and_unrelated_secrets_do_not_sign_requests(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (first, second, unused) = (stage.secret(), stage.secret(), stage.secret());
    stage.promote(second);
    stage.disable(first);
    for frozen in [None, Some(first), Some(SecretId::new(stage.now))] {
        assert_eq!(stage.valid(frozen), [(second, true, None)], "{frozen:?}");
    }
    stage.disable(unused);
    stage.disable(second);
    assert_eq!(stage.valid(Some(second)), []);
}

async fn of_demoted_secrets_the_newest_three_sign_requests(backend: Backend) {
    let mut stage = Stage::new(backend);
    let secrets: Vec<_> = (0..6).map(|_| stage.secret()).collect();
    for secret in &secrets {
        stage.promote(*secret);
    }
    let ids: Vec<_> = stage.valid(Some(secrets[0])).iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, [5, 4, 3, 2, 0].map(|n| secrets[n]));
    assert_eq!(stage.number("SELECT count(*) FROM signing_secrets WHERE demoted_at IS NOT NULL"), 3);
}

async fn disabling_a_secret_leaves_no_demotion_and_makes_its_successor_current(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (first, second) = (stage.secret(), stage.secret());
    stage.promote(second);
    stage.disable(second);
    assert_eq!(stage.valid(Some(second)), [(first, true, None)]);
    assert_eq!(stage.number("SELECT count(*) FROM signing_secrets WHERE demoted_at IS NOT NULL"), 0);
}

async fn the_secrets_of_many_organizations_are_read_together_and_each_opens(backend: Backend) {
    let mut stage = Stage::new(backend);
    let (other, ring) = (stage.other_org(), keyring());
    let made =
        [stage.org, other].map(|org| create_secret(&mut stage.conn, stage.now, &ring, org, None).unwrap());
    let spare = create_secret(&mut stage.conn, stage.now, &ring, other, None).unwrap();
    let wanted = [(stage.org, None), (other, Some(made[1].secret.id)), (other, Some(spare.secret.id))];
    let secrets = signing_secrets(&mut stage.conn, &wanted, stage.now).unwrap();
    assert_eq!(secrets.len(), 3);
    for made in made.iter().chain([&spare]) {
        let secret = secrets.iter().find(|secret| secret.id == made.secret.id).unwrap();
        assert_eq!((secret.org_id, secret.is_current), (made.secret.org_id, made.secret.is_current));
        assert_eq!(secret.open(&ring).unwrap().plain(), made.plain_secret.plain());
        let stranger = Keyring::parse(&[Keyring::generate("other").as_str()]).unwrap();
        assert_eq!(secret.open(&stranger).unwrap_err(), OpenError::KeyMissing("test".into()));
    }
}

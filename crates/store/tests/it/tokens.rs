//! API tokens.

use std::time::Duration;

use ::store::{TokenText, authenticate, create_token, list_tokens, revoke_token};
use contracts::{Scope, Scopes};
use testkit::Backend;

use crate::stage::Stage;

testkit::on_both_backends!(
    a_token_identifies_its_organization_and_scopes,
    an_unknown_token_has_no_principal,
    a_token_is_valid_until_it_expires,
    a_revoked_token_has_no_principal_and_remains_listed,
    a_scope_of_a_later_version_allows_nothing,
    only_the_tokens_sha256_is_kept,
);

async fn a_token_identifies_its_organization_and_scopes(backend: Backend) {
    let mut stage = Stage::new(backend);
    let other = stage.other_org();
    let few = Scopes::Named(vec![Scope::RunsRead, Scope::CallbackSecretsEdit]);
    let cases = [(stage.org, Scopes::All), (stage.org, few), (other, Scopes::Named(vec![]))];
    for (org, scopes) in cases {
        let label = Some("ci".to_owned());
        let made = create_token(&mut stage.conn, stage.now, org, scopes.clone(), label, None).unwrap();
        assert!(made.token.starts_with("rf_live_") && made.token.len() == 8 + 64, "{}", *made.token);
        let text = TokenText::parse(&made.token).expect("it looks like a token");
        let principal = authenticate(&mut stage.conn, stage.now, text).unwrap().expect("it is known");
        assert_eq!((principal.token_id, principal.org_id, principal.scopes), (made.id, org, scopes));
    }
}

async fn an_unknown_token_has_no_principal(backend: Backend) {
    let mut stage = Stage::new(backend);
    let made = create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, None, None).unwrap();
    let digits = made.token.strip_prefix("rf_live_").unwrap();
    let unknown = [format!("rf_svc_{digits}"), format!("rf_live_{}", "0".repeat(64))];
    for text in unknown {
        assert_eq!(
            authenticate(&mut stage.conn, stage.now, TokenText::parse(&text).unwrap()).unwrap(),
            None,
            "{text}"
        );
    }
    for text in ["", "rf_live_", digits, &made.token[..71], &made.token.to_uppercase()] {
        assert!(TokenText::parse(text).is_none(), "{text}");
    }
}

async fn a_token_is_valid_until_it_expires(backend: Backend) {
    let mut stage = Stage::new(backend);
    let end = stage.now + Duration::from_secs(90);
    let made = create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, None, Some(end)).unwrap();
    let text = TokenText::parse(&made.token).unwrap();
    let last = end - Duration::from_micros(1);
    let principal = authenticate(&mut stage.conn, last, text).unwrap().expect("it is still good");
    assert_eq!(principal.expires_at, Some(end));
    assert_eq!(authenticate(&mut stage.conn, end, text).unwrap(), None);
}

async fn a_revoked_token_has_no_principal_and_remains_listed(backend: Backend) {
    let mut stage = Stage::new(backend);
    let other = stage.other_org();
    let kept = create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, None, None).unwrap();
    let label = Some("leaked".to_owned());
    let leaked = create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, label, None).unwrap();
    let (org, at) = (stage.org, stage.now + Duration::from_secs(1));
    assert_eq!(revoke_token(&mut stage.conn, at, other, leaked.id).unwrap(), None, "it is not theirs");
    let text = TokenText::parse(&leaked.token).unwrap();
    assert!(authenticate(&mut stage.conn, at, text).unwrap().is_some());

    let revoked = revoke_token(&mut stage.conn, at, org, leaked.id).unwrap().expect("it is known");
    assert_eq!(revoked.revoked_at, Some(at));
    assert_eq!(authenticate(&mut stage.conn, at, text).unwrap(), None);
    let later = at + Duration::from_secs(60);
    assert_eq!(revoke_token(&mut stage.conn, later, org, leaked.id).unwrap(), Some(revoked.clone()));
    let listed = list_tokens(&mut stage.conn, org).unwrap();
    assert!(listed.contains(&revoked) && listed.iter().any(|token| token.id == kept.id));
    assert!(list_tokens(&mut stage.conn, other).unwrap().iter().all(|token| token.org_id == other));
}

async fn a_scope_of_a_later_version_allows_nothing(backend: Backend) {
    let mut stage = Stage::new(backend);
    let made = create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, None, None).unwrap();
    stage.sql("UPDATE api_tokens SET scopes = 'runs:fly runs:read'").unwrap();
    let principal =
        authenticate(&mut stage.conn, stage.now, TokenText::parse(&made.token).unwrap()).unwrap().unwrap();
    assert_eq!(principal.scopes, Scopes::Named(vec![Scope::RunsRead]));
}

async fn only_the_tokens_sha256_is_kept(backend: Backend) {
    let mut stage = Stage::new(backend);
    let made =
        create_token(&mut stage.conn, stage.now, stage.org, Scopes::All, Some("label".into()), None).unwrap();
    let digits = made.token.strip_prefix("rf_live_").unwrap();
    assert!(stage.holds(b"label"), "the search finds what is there");
    assert!(!stage.holds(digits.as_bytes()));
    assert!(!stage.holds(&hex::decode(digits).unwrap()));
    assert!(stage.holds(&<sha2::Sha256 as sha2::Digest>::digest(made.token.as_bytes())));
}

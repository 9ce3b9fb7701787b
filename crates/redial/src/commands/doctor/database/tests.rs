use store::MissingKey;

use super::*;
use crate::commands::doctor::report::Status;

const DEMAND: Demand = Demand { processes: 2, connections: 22, is_pooled: false };

fn sound() -> PostgresFacts {
    PostgresFacts {
        major_version: 17,
        version: "17.2".into(),
        encoding: "UTF8".into(),
        fsync: true,
        full_page_writes: true,
        synchronous_commit: "on".into(),
        autovacuum: true,
        is_standby: false,
        is_read_only: false,
        may_write: true,
        max_connections: 100,
        reserved_connections: 3,
        connection_limit: None,
        sessions: 30,
        own_sessions: 20,
        hidden_sessions: 0,
    }
}

/// Returns the names of the checks that are not ok, with their status.
fn findings(facts: &PostgresFacts, demand: &Demand) -> Vec<(&'static str, Status)> {
    let checks = server(facts, "postgres://db/redial", demand);
    assert_eq!(checks.len(), 1 + OF_SERVER.len());
    let found = checks.into_iter().map(|check| (check.check, check.status));
    found.filter(|(_, status)| *status != Status::Ok).collect()
}

#[test]
fn a_sound_server_has_no_findings() {
    assert_eq!(findings(&sound(), &DEMAND), []);
    let synchronous = PostgresFacts { synchronous_commit: "remote_apply".into(), ..sound() };
    assert_eq!(findings(&synchronous, &DEMAND), []);
}

#[test]
fn each_setting_that_endangers_deliveries_is_found() {
    use Status::{Problem, Warning};
    for (facts, check, status) in [
        (PostgresFacts { major_version: 14, ..sound() }, "database", Warning),
        (PostgresFacts { is_standby: true, ..sound() }, "database.writes", Problem),
        (PostgresFacts { may_write: false, ..sound() }, "database.writes", Problem),
        (PostgresFacts { is_read_only: true, ..sound() }, "database.writes", Warning),
        (PostgresFacts { fsync: false, ..sound() }, "database.fsync", Problem),
        (PostgresFacts { full_page_writes: false, ..sound() }, "database.full_page_writes", Warning),
        (
            PostgresFacts { synchronous_commit: "local".into(), ..sound() },
            "database.synchronous_commit",
            Warning,
        ),
        (PostgresFacts { autovacuum: false, ..sound() }, "database.autovacuum", Warning),
        (PostgresFacts { encoding: "LATIN1".into(), ..sound() }, "database.encoding", Problem),
        (PostgresFacts { hidden_sessions: 1, ..sound() }, "database.sessions", Warning),
    ] {
        assert_eq!(findings(&facts, &DEMAND), [(check, status)]);
    }
}

#[test]
fn connections_are_limited_by_the_server_the_role_and_the_database() {
    for (limit, connections, status) in [
        (None, 87, Status::Ok), // with 10 of others: all but the reserved ones
        (None, 88, Status::Warning),
        (None, 97, Status::Warning),
        (None, 98, Status::Problem),
        (Some(32), 22, Status::Ok),
        (Some(32), 23, Status::Warning),
        (Some(20), 22, Status::Problem),
        (Some(500), 98, Status::Problem),
    ] {
        let facts = PostgresFacts { connection_limit: limit, ..sound() };
        let demand = Demand { connections, ..DEMAND };
        let found = super::connections(&facts, &demand);
        assert_eq!(found.status, status, "{limit:?} {found:?}");
        let pooled = super::connections(&facts, &Demand { is_pooled: true, ..demand });
        assert_eq!(pooled.status, Status::Ok);
    }
}

#[test]
fn clocks_may_differ_by_a_second() {
    for (ahead, status) in
        [(0.2, Status::Ok), (-1.0, Status::Ok), (1.1, Status::Warning), (-1.1, Status::Warning)]
    {
        assert_eq!(clock(ahead).status, status);
    }
    assert_eq!(clock(-0.25).found, "the database's is 0.250 s behind this host's");
}

#[test]
fn a_schema_fits_if_it_is_equal_or_admits_this_program() {
    let facts = |state, newest| SchemaFacts { state, newest, known: 16 };
    for (facts, status, says) in [
        (facts(SchemaState::Fits, Some(16)), Status::Ok, "migration 16, the newest"),
        (facts(SchemaState::Fits, Some(20)), Status::Ok, "migration 20, newer than this program"),
        (facts(SchemaState::Older, None), Status::Problem, "no tables"),
        (facts(SchemaState::Older, Some(9)), Status::Problem, "up to 9 are applied, of 16"),
        (facts(SchemaState::Newer(18), Some(20)), Status::Problem, "from schema 18 on"),
    ] {
        let check = schema(facts);
        assert_eq!(check.status, status);
        assert!(check.found.contains(says), "{check:?}");
    }
}

#[test]
fn secrets_that_do_not_open_are_counted_and_matter_unless_they_are_deleted() {
    let missing = |needed| MissingKey { key_id: "old".into(), secrets: 3, needed, reason: "gone".into() };
    let check = |stored, tried, missing| secrets(&OpenedSecrets { stored, tried, missing });
    assert_eq!(check(0, 0, vec![]).found, "no signing secret is stored yet");
    assert_eq!(check(9, 9, vec![]).found, "every signing secret opens: 9");
    assert_eq!(check(9, 5, vec![]).found, "5 of 9 signing secrets were tried, and all of them open");
    assert_eq!(check(9, 9, vec![missing(false)]).status, Status::Warning);
    let needed = check(9, 9, vec![missing(false), missing(true)]);
    assert_eq!(needed.status, Status::Problem);
    assert!(needed.found.contains("3 signing secret(s) are sealed with key \"old\""), "{needed:?}");
}

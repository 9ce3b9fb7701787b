//! Judges this host: open files, an SQLite file, and what it takes to reach receivers.

use dispatcher::{DispatcherError, NameServer};
use egress::Policy;

use super::report::Check;
use crate::open_files::{connections_per_worker, needed_for};

/// Enough for days of deliveries of a developer.
const LITTLE_SPACE: u64 = 1 << 30;

/// The connections that services accept and open.
pub(super) struct Load {
    /// Attempts in flight of a dispatcher.
    pub(super) max_in_flight: usize,
    /// Worker threads of an api.
    pub(super) workers: usize,
    /// Connections of each worker, at most.
    pub(super) connections: usize,
}

/// `hard_limit` is the highest limit that a process may set for itself; `None` is unlimited.
pub(super) fn open_files(hard_limit: Option<u64>, load: &Load) -> Check {
    const CHECK: &str = "open_files";
    let Load { max_in_flight, workers, connections } = *load;
    let needed = needed_for(max_in_flight);
    let limit = hard_limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    if hard_limit.is_some_and(|limit| limit < needed) {
        let found = format!("the hard limit is {limit}, and a dispatcher needs {needed}");
        return Check::problem(
            CHECK,
            found,
            "raise it (LimitNOFILE, ulimit -Hn), or lower dispatcher.max_in_flight",
        );
    }
    let accepted = connections_per_worker(hard_limit, workers, connections) * workers;
    Check::ok(
        CHECK,
        format!(
            "the hard limit is {limit}; a dispatcher needs {needed}, an api accepts {accepted} connections"
        ),
    )
}

pub(super) fn egress(policy: &Policy) -> Check {
    const CHECK: &str = "egress";
    let opened = policy.opened();
    if opened.is_empty() {
        return Check::ok(CHECK, "only public addresses may be called");
    }
    let ranges: Vec<String> =
        opened.iter().map(|(range, blocks)| format!("{range} ({})", blocks.join(", "))).collect();
    Check::warning(
        CHECK,
        format!("callbacks may also call {}", ranges.join(", ")),
        "check that services there authenticate their clients: anyone who may record a run chooses the URL",
    )
}

pub(super) fn certificates(loaded: Result<(), DispatcherError>) -> Check {
    const CHECK: &str = "certificates";
    match loaded {
        Ok(()) => Check::ok(CHECK, "the authorities' certificates and those of the settings can be used"),
        Err(error @ DispatcherError::Certificates { .. }) => {
            Check::problem(CHECK, error.to_string(), "correct the file or the setting")
        }
        Err(error) => {
            Check::problem(CHECK, error.to_string(), "install ca-certificates, or set SSL_CERT_FILE")
        }
    }
}

pub(super) fn name_servers(found: Result<Vec<NameServer>, String>) -> Check {
    const CHECK: &str = "name_servers";
    const ADVICE: &str = "correct /etc/resolv.conf, or let this host reach them";
    let servers = match found {
        Ok(servers) => servers,
        Err(why) => return Check::problem(CHECK, why, "correct /etc/resolv.conf"),
    };
    let listed = |responds| {
        let chosen = servers.iter().filter(|server| server.responds == responds);
        chosen.map(|server| server.address.to_string()).collect::<Vec<_>>().join(", ")
    };
    match (listed(true), listed(false)) {
        (responding, silent) if silent.is_empty() => Check::ok(CHECK, format!("responding: {responding}")),
        (responding, silent) if responding.is_empty() => {
            Check::problem(CHECK, format!("no response from {silent}"), ADVICE)
        }
        (responding, silent) => {
            let found = format!("no response from {silent}, only from {responding}: lookups take longer");
            Check::warning(CHECK, found, ADVICE)
        }
    }
}

/// What is known about an SQLite file without opening it.
pub(super) struct FileFacts {
    /// Whether this user may write the file, and create files beside it.
    pub(super) is_writable: bool,
    /// The name of the file system if it is a network's.
    pub(super) network: Option<&'static str>,
    /// Free bytes for this user.
    pub(super) free: u64,
}

/// Judges an SQLite file. `journal_mode` is its own.
pub(super) fn sqlite_file(place: &str, facts: &FileFacts, journal_mode: &str) -> Vec<Check> {
    let writes = if facts.is_writable {
        Check::ok("database.writes", "the file and its directory are writable")
    } else {
        let found = "this user may not write the file, or not create files in its directory";
        Check::problem(
            "database.writes",
            found,
            format!("run it as another user, or change the owner of {place}"),
        )
    };
    let file_system = match facts.network {
        None => Check::ok("database.file_system", "local"),
        Some(network) => Check::problem(
            "database.file_system",
            format!("{network}, a network file system"),
            "move the file to a local disk: SQLite's locks and its log need one",
        ),
    };
    let free = format!("{} MiB are free", facts.free >> 20);
    let space = if facts.free < LITTLE_SPACE {
        Check::warning("database.space", free, "make room: without it nothing is accepted or recorded")
    } else {
        Check::ok("database.space", free)
    };
    let mode = match journal_mode {
        "wal" => journal_mode.to_owned(),
        other => format!("{other}; `redial dev` switches to wal when it starts"),
    };
    vec![
        Check::ok("database", format!("SQLite file {place}")),
        writes,
        Check::ok("database.journal_mode", mode),
        file_system,
        space,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::report::Status;

    #[test]
    fn a_dispatcher_needs_a_file_per_attempt_in_flight() {
        let load = Load { max_in_flight: 256, workers: 2, connections: 8_192 };
        for (limit, status) in [(None, Status::Ok), (Some(384), Status::Ok), (Some(383), Status::Problem)] {
            assert_eq!(open_files(limit, &load).status, status);
        }
        assert!(open_files(Some(1_128), &load).found.ends_with("an api accepts 1000 connections"));
    }

    #[test]
    fn name_servers_are_a_problem_if_none_responds_and_a_warning_if_some_do() {
        let server = |n, responds| NameServer { address: [10, 0, 0, n].into(), responds };
        for (servers, status, says) in [
            (vec![server(1, true), server(2, true)], Status::Ok, "responding: 10.0.0.1, 10.0.0.2"),
            (
                vec![server(1, false), server(2, true)],
                Status::Warning,
                "no response from 10.0.0.1, only from",
            ),
            (vec![server(1, false)], Status::Problem, "no response from 10.0.0.1"),
        ] {
            let check = name_servers(Ok(servers));
            assert_eq!(check.status, status);
            assert!(check.found.starts_with(says), "{check:?}");
        }
        assert_eq!(name_servers(Err("unreadable".into())).status, Status::Problem);
    }

    #[test]
    fn an_sqlite_file_must_be_writable_and_local_and_have_room() {
        let sound = || FileFacts { is_writable: true, network: None, free: LITTLE_SPACE };
        for (facts, found) in [
            (sound(), None),
            (FileFacts { is_writable: false, ..sound() }, Some(("database.writes", Status::Problem))),
            (FileFacts { network: Some("NFS"), ..sound() }, Some(("database.file_system", Status::Problem))),
            (FileFacts { free: 1 << 20, ..sound() }, Some(("database.space", Status::Warning))),
        ] {
            let checks = sqlite_file("redial.db", &facts, "wal").into_iter();
            let judged = checks.map(|check| (check.check, check.status));
            assert_eq!(
                judged.filter(|(_, status)| *status != Status::Ok).collect::<Vec<_>>(),
                Vec::from_iter(found)
            );
        }
    }
}

//! Judges the addresses that services listen on.

use std::io;
use std::net::SocketAddr;

use super::report::Check;
use crate::settings::ListenAddress;

/// An address that a service listens on.
pub(super) struct Listener {
    /// Its setting, which is also the check's name.
    pub(super) setting: &'static str,
    /// `None`: not set.
    pub(super) address: Option<SocketAddr>,
}

/// Whether an address can be listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Free,
    /// A service of Redial listens there.
    Ours,
    /// Another program listens there, or a service of Redial that does not answer.
    Taken,
    /// Contains the system's reason.
    Impossible(String),
}

/// `same_process` are the other addresses of the same process.
pub(super) fn listener(listener: &Listener, port: Option<&Port>, same_process: &[Listener]) -> Check {
    let check = listener.setting;
    let (Some(address), Some(port)) = (listener.address, port) else {
        return Check::ok(check, "not set, so nothing listens");
    };
    let collides = |other: &&Listener| other.address.is_some_and(|other| overlap(address, other));
    if let Some(other) = same_process.iter().find(collides) {
        let found = format!("{address} is also {}", other.setting);
        return Check::problem(check, found, "give it another port: one process can't listen there twice");
    }
    match port {
        Port::Free => Check::ok(check, format!("{address} is free")),
        Port::Ours => Check::ok(check, format!("{address} is used by a running service of Redial")),
        Port::Taken => Check::warning(
            check,
            format!("{address} is taken by another program, or by a service that does not answer"),
            "stop it, or give another port, if this service is to run on this host",
        ),
        Port::Impossible(why) => Check::problem(
            check,
            format!("no program of this user can listen on {address}: {why}"),
            "give an address of this host, and a port that the user may use",
        ),
    }
}

/// Judges an address that is none of this host's.
pub(super) fn unresolved(setting: &'static str, address: &ListenAddress, error: &io::Error) -> Check {
    let found = format!("no program can listen on {address}: {error}");
    Check::problem(setting, found, "give an address of this host, or a name that has one")
}

/// Whether two listeners on these addresses exclude each other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || is_any)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::report::Status;

    fn at(setting: &'static str, address: &str) -> Listener {
        Listener { setting, address: Some(address.parse().unwrap()) }
    }

    #[test]
    fn two_listeners_of_one_process_on_one_port_are_a_problem() {
        for (api, metrics, status) in [
            ("127.0.0.1:8080", "127.0.0.1:9464", Status::Ok),
            ("127.0.0.1:8080", "127.0.0.1:8080", Status::Problem),
            ("0.0.0.0:8080", "127.0.0.1:8080", Status::Problem),
            ("127.0.0.2:8080", "127.0.0.1:8080", Status::Ok),
            ("127.0.0.1:0", "127.0.0.1:0", Status::Ok),
        ] {
            let (api, metrics) = (at("api.listen", api), [at("metrics.listen", metrics)]);
            assert_eq!(listener(&api, Some(&Port::Free), &metrics).status, status, "{:?}", api.address);
        }
    }

    #[test]
    fn an_address_that_no_service_could_get_is_a_problem_and_a_taken_one_a_warning() {
        let api = at("api.listen", "127.0.0.1:8080");
        for (port, status) in [
            (Port::Free, Status::Ok),
            (Port::Ours, Status::Ok),
            (Port::Taken, Status::Warning),
            (Port::Impossible("permission denied".into()), Status::Problem),
        ] {
            assert_eq!(listener(&api, Some(&port), &[]).status, status, "{port:?}");
        }
        let unset = Listener { setting: "dispatcher.listen", address: None };
        assert_eq!(listener(&unset, None, &[]).status, Status::Ok);
    }
}

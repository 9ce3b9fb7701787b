use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::dns::system::SystemNames;
use crate::dns::test_name_server::{NameServer, Reply};

const TIMEOUT: Duration = Duration::from_secs(1);
/// For lookups that must not wait for a timeout.
const LONG: Duration = Duration::from_secs(40);
const NO_NAME_SERVER: NameError = NameError::Local(LocalFailure::NoNameServer);

fn address() -> IpAddr {
    [93, 184, 216, 34].into()
}

fn address_v6() -> IpAddr {
    "2606:2800::1".parse().unwrap()
}

/// Looks up `name` at a server with these replies.
async fn look_up(
    name: &str,
    timeout: Duration,
    reply: impl Fn(&str, RecordType) -> Reply + Send + 'static,
) -> Result<Vec<IpAddr>, NameError> {
    NameServer::start(reply).await.names(Hosts::default(), timeout).look_up(name).await
}

#[test]
fn name_servers_that_responded_after_the_query_are_up() {
    let asked_at = Instant::now();
    let before = asked_at - Duration::from_millis(1);
    assert_eq!(no_response(asked_at, None), NO_NAME_SERVER);
    assert_eq!(no_response(asked_at, Some(before)), NO_NAME_SERVER);
    assert_eq!(no_response(asked_at, Some(asked_at)), NameError::NoAnswer);
    assert_eq!(no_response(before, Some(asked_at)), NameError::NoAnswer);
}

#[test]
fn the_more_informative_of_two_misses_counts() {
    let misses = [
        Miss::Error(NameError::NoAddress),
        Miss::NoResponse,
        Miss::Error(NameError::ServerError(ResponseCode::ServFail)),
        Miss::Error(NameError::Local(LocalFailure::NoSocket)),
        Miss::Error(NameError::NoSuchName),
    ];
    for (n, more) in misses.iter().enumerate() {
        for less in &misses[..=n] {
            assert_eq!(less.clone().or(more.clone()), *more);
            assert_eq!(more.clone().or(less.clone()), *more);
        }
    }
}

#[tokio::test]
async fn both_address_families_are_found_ipv6_first() {
    let found = look_up("example.com", LONG, |_, family| match family {
        RecordType::A => Reply::Address(address()),
        _ => Reply::Address(address_v6()),
    });
    assert_eq!(found.await.unwrap(), [address_v6(), address()]);
}

#[tokio::test]
async fn an_error_response_is_about_the_name() {
    for (code, error) in [
        (ResponseCode::NXDomain, NameError::NoSuchName),
        (ResponseCode::NoError, NameError::NoAddress),
        (ResponseCode::ServFail, NameError::ServerError(ResponseCode::ServFail)),
        (ResponseCode::Refused, NameError::ServerError(ResponseCode::Refused)),
    ] {
        assert_eq!(look_up("example.com", LONG, move |_, _| Reply::Code(code)).await, Err(error));
    }
    assert_eq!(look_up("a..b", LONG, |_, _| Reply::Silence).await, Err(NameError::Malformed));
}

#[tokio::test]
async fn a_name_server_that_never_responds_is_a_local_failure() {
    assert_eq!(look_up("example.com", TIMEOUT, |_, _| Reply::Silence).await, Err(NO_NAME_SERVER));
}

#[tokio::test]
async fn no_response_for_one_name_while_others_get_one_is_about_the_name() {
    let server = NameServer::start(|name, family| match (name, family) {
        ("example.com.", RecordType::A) => Reply::Address(address()),
        ("example.com.", _) => Reply::Address(address_v6()),
        _ => Reply::Silence, // also to the probe
    });
    let names = server.await.names(Hosts::default(), TIMEOUT);
    // The second response for example.com comes from the cache, which proves nothing.
    for error in [NameError::NoAnswer, NO_NAME_SERVER] {
        let (silent, found) = tokio::join!(names.look_up("silent.example"), names.look_up("example.com"));
        assert_eq!(found.unwrap(), [address_v6(), address()]);
        assert_eq!(silent, Err(error));
    }
}

#[tokio::test]
async fn no_response_for_the_only_name_is_about_the_name_if_the_probe_gets_one() {
    let silent = look_up("silent.example", TIMEOUT, |name, _| match name {
        "." => Reply::Code(ResponseCode::NoError),
        _ => Reply::Silence,
    });
    assert_eq!(silent.await, Err(NameError::NoAnswer));
}

#[tokio::test]
async fn a_family_without_a_response_does_not_delay_the_other() {
    let asked_at = Instant::now();
    let found = look_up("example.com", LONG, |_, family| match family {
        RecordType::A => Reply::Address(address()),
        _ => Reply::Silence,
    });
    assert_eq!(found.await.unwrap(), [address()]);
    let missing = look_up("example.com", LONG, |_, family| match family {
        RecordType::A => Reply::Code(ResponseCode::NXDomain),
        _ => Reply::Silence,
    });
    assert_eq!(missing.await, Err(NameError::NoSuchName));
    assert!(asked_at.elapsed() < LONG);
}

#[tokio::test]
async fn a_hundred_names_without_a_response_do_not_delay_another_lookup() {
    let server = NameServer::start(|name, _| match name {
        "example.com." => Reply::Address(address()),
        _ => Reply::Silence,
    });
    let names = Arc::new(server.await.names(Hosts::default(), TIMEOUT));
    let silent = |n| {
        let names = names.clone();
        tokio::spawn(async move { names.look_up(&format!("silent-{n}.example")).await })
    };
    let silent: Vec<_> = (0..100).map(silent).collect();
    assert_eq!(names.look_up("example.com").await.unwrap(), [address()]);
    assert!(!silent.iter().any(|look_up| look_up.is_finished()));
    for look_up in silent {
        assert_eq!(look_up.await.unwrap(), Err(NameError::NoAnswer));
    }
}

#[tokio::test]
async fn the_next_name_server_is_queried_at_once_when_one_fails_and_soon_when_one_is_silent() {
    let found = |_: &str, _| Reply::Address(address());
    let fails = NameServer::start(|_, _| Reply::Code(ResponseCode::ServFail)).await;
    let is_silent = NameServer::start(|_, _| Reply::Silence).await;
    let is_missing = NameServer::start(|_, _| Reply::Code(ResponseCode::NXDomain)).await;
    for (first, within, expected) in [
        (&fails, LONG / 4, Ok(vec![address()])),
        (&is_silent, TIMEOUT, Ok(vec![address()])),
        (&is_missing, LONG / 4, Err(NameError::NoSuchName)),
    ] {
        let servers = [first.config(), NameServer::start(found).await.config()].concat();
        let timeout = if within == TIMEOUT { TIMEOUT } else { LONG };
        let config = ResolverConfig::from_name_servers(servers);
        let names = Names::new(config, ResolverOpts::default(), Hosts::default(), timeout).unwrap();
        let asked_at = Instant::now();
        assert_eq!(names.look_up("example.com").await, expected);
        assert!(asked_at.elapsed() < within);
    }
}

#[tokio::test]
async fn a_response_is_cached_for_its_ttl() {
    let server = NameServer::start(|name, _| match name {
        "cached.example." => Reply::Address(address()),
        _ => Reply::Uncacheable(address()),
    });
    let server = server.await;
    let names = server.names(Hosts::default(), LONG);
    for (name, queries) in [("cached.example", 1), ("uncached.example", 3)] {
        for _ in 0..3 {
            assert_eq!(names.look_up(name).await.unwrap(), [address()]);
        }
        let query = (format!("{name}."), RecordType::A);
        let asked = server.queries.lock().unwrap().iter().filter(|asked| **asked == query).count();
        assert_eq!(asked, queries, "{name}");
    }
}

#[tokio::test]
async fn no_query_is_sent_for_localhost_or_names_in_the_hosts_file() {
    let server = NameServer::start(|_, _| Reply::Silence).await;
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf("10.1.2.3 Inside # a name\n".as_bytes()).unwrap();
    let names = server.names(hosts, LONG);
    assert_eq!(names.look_up("inside").await.unwrap(), [IpAddr::from([10, 1, 2, 3])]);
    let loopback = [IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()];
    for name in ["localhost", "a.localhost", "localhost."] {
        assert_eq!(names.look_up(name).await.unwrap(), loopback);
    }
    assert_eq!(names.look_up("no-such-host.invalid").await, Err(NameError::NoSuchName));
    assert!(server.queries.lock().unwrap().is_empty());
}

#[test]
fn an_unchanged_system_configuration_is_read_once() {
    let system = SystemNames::new(TIMEOUT).unwrap();
    assert!(Arc::ptr_eq(&system.current(), &system.current()));
}

//! Asks the system's name servers for a host's addresses, without a thread for each question, and tells what their
//! silence means.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::{Future, pending, select};
use futures_util::stream::{Stream, StreamExt};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{ConnectionProvider, Hosts, PoolContext};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

use crate::shortage::shortage;
use engine::LocalFailure;

/// Why a name has no addresses.
#[derive(Clone, Debug, Error, PartialEq)]
pub(crate) enum NameError {
    /// Not a name.
    #[error("it is not a host name")]
    Malformed,
    #[error("there is no such name")]
    NoSuchName,
    #[error("it has no address")]
    NoAddress,
    #[error("the name server answered {0}")]
    Refused(ResponseCode),
    /// The name servers answer, but not for this name: its own zone's servers are silent.
    #[error("no answer")]
    ZoneSilent,
    #[error("{0}")]
    Garbled(String),
    /// For a reason of ours.
    #[error("{}", .0.detail())]
    Local(LocalFailure),
}

/// Whose silence it is when a question got no answer. Name servers that have answered anything since it was asked are
/// there: what they wait for themselves is the name's zone. Before this is asked, they have been asked for the root's
/// servers, which every one of them knows, so that a single name does not look like an outage when nobody else asks.
fn silence(asked_at: Instant, last_answer_at: Option<Instant>) -> NameError {
    match last_answer_at {
        Some(at) if at >= asked_at => NameError::ZoneSilent,
        _ => NameError::Local(LocalFailure::NoNameServer),
    }
}

/// A client of certain name servers, with its cache.
pub(crate) struct Names {
    resolver: hickory_resolver::Resolver<Wire>,
    hosts: Hosts,
    answers: Answers,
    budget: Duration,
}

/// Cached answers.
const CACHED: u64 = 1_000;
/// How long the absence of a name or address is remembered at most: it may be being set up.
const ABSENCE_CACHED: Duration = Duration::from_secs(10);
/// As many as glibc asks.
const MOST_SERVERS: usize = 3;
/// How long one address family waits for the other (RFC 8305 section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// The most addresses used of one name: they share the time for connecting.
const MOST_ADDRESSES: usize = 16;

/// Sockets that one look-up holds while nothing is answered: two record types, each sent three times from a socket of
/// its own to each name server.
pub(crate) const MOST_SOCKETS: usize = 2 * 3 * MOST_SERVERS;

impl Names {
    /// `budget` is for one look-up.
    pub(crate) fn new(
        mut config: ResolverConfig,
        mut options: ResolverOpts,
        hosts: Hosts,
        budget: Duration,
    ) -> Result<Names, NetError> {
        config.name_servers.truncate(MOST_SERVERS);
        // One try for the whole budget: a late answer to the first packet still counts.
        options.timeout = budget;
        options.attempts = 0;
        options.num_concurrent_reqs = config.name_servers.len();
        options.cache_size = CACHED;
        options.negative_max_ttl = Some(ABSENCE_CACHED);
        // It would ask for the address family that the file does not have.
        options.use_hosts_file = ResolveHosts::Never;
        let answers = Answers::default();
        let wire = Wire { io: TokioRuntimeProvider::default(), answers: answers.clone() };
        let resolver = hickory_resolver::Resolver::builder_with_config(config, wire);
        Ok(Names { resolver: resolver.with_options(options).build()?, hosts, answers, budget })
    }

    /// Returns the addresses of `host`, IPv6 first.
    pub(crate) async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        let name = Name::from_str_relaxed(host).map_err(|_| NameError::Malformed)?;
        let found = self.in_hosts_file(&name);
        if !found.is_empty() {
            return Ok(found);
        }
        let asked_at = Instant::now();
        // Runs while the question is still waiting, and only if everything has been silent until then.
        let probe = async {
            sleep(self.budget / 2).await;
            if self.answers.last().is_none_or(|at| at < asked_at) {
                self.resolver.clear_lookup_cache(Name::root(), RecordType::NS);
                let _ = self.resolver.lookup(Name::root(), RecordType::NS).await;
            }
            pending().await
        };
        let found = tokio::select! {
            found = timeout(self.budget, self.addresses(name)) => found,
            never = probe => never,
        };
        match found {
            Ok(Err(Miss::Silence)) | Err(_) => Err(silence(asked_at, self.answers.last())),
            Ok(Err(Miss::Error(error))) => Err(error),
            Ok(Ok(addresses)) => Ok(addresses),
        }
    }

    fn in_hosts_file(&self, name: &Name) -> Vec<IpAddr> {
        let found = [RecordType::AAAA, RecordType::A]
            .into_iter()
            .filter_map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), family)));
        found.flat_map(|found| addresses(&found)).collect()
    }

    /// Asks for both families at once. When one has been found, the other is not waited for long: some servers drop
    /// questions for a family that they don't have.
    async fn addresses(&self, name: Name) -> Result<Vec<IpAddr>, Miss> {
        let v4 = pin!(self.resolver.lookup(name.clone(), RecordType::A));
        let v6 = pin!(self.resolver.lookup(name, RecordType::AAAA));
        let (first, other) = select(v6, v4).await.factor_first();
        let first = judged(first);
        let other = match &first {
            Err(Miss::Error(NameError::NoSuchName)) => return first,
            Ok(_) => timeout(RESOLUTION_DELAY, other).await.map_or(Err(Miss::Silence), judged),
            Err(_) => judged(other.await),
        };
        let mut found: Vec<IpAddr> = match (first, other) {
            (Ok(first), Ok(other)) => [first, other].concat(),
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => found,
            (Err(first), Err(other)) => return Err(first.or(other)),
        };
        found.sort_by_key(IpAddr::is_ipv4);
        found.truncate(MOST_ADDRESSES);
        Ok(found)
    }
}

/// Why one question brought no address.
enum Miss {
    Silence,
    Error(NameError),
}

impl Miss {
    /// The one of two that says more about the name: its absence is known from one family, the absence of an address
    /// only from both.
    fn or(self, other: Miss) -> Miss {
        let weight = |miss: &Miss| match miss {
            Miss::Error(NameError::NoSuchName | NameError::Malformed) => 4,
            Miss::Error(NameError::Local(_)) => 3,
            Miss::Error(NameError::Refused(_) | NameError::Garbled(_) | NameError::ZoneSilent) => 2,
            Miss::Silence => 1,
            Miss::Error(NameError::NoAddress) => 0,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }
}

fn judged(answer: Result<Lookup, NetError>) -> Result<Vec<IpAddr>, Miss> {
    let error = match answer {
        Ok(found) => {
            let found = addresses(&found);
            return if found.is_empty() { Err(Miss::Error(NameError::NoAddress)) } else { Ok(found) };
        }
        Err(error) => error,
    };
    Err(Miss::Error(match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, .. })) => match response_code {
            ResponseCode::NXDomain => NameError::NoSuchName,
            _ => NameError::NoAddress,
        },
        NetError::Dns(DnsError::ResponseCode(code)) => NameError::Refused(code),
        NetError::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(Refusal(code)) => NameError::Refused(*code),
            None => match shortage(&error) {
                Some(failure @ LocalFailure::NoSocket) => NameError::Local(failure),
                _ => return Err(Miss::Silence),
            },
        },
        NetError::Timeout | NetError::NoConnections | NetError::Busy => return Err(Miss::Silence),
        garbled => NameError::Garbled(garbled.to_string()),
    }))
}

fn addresses(found: &Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// When a name server answered last, whatever it said. Answers from the cache don't count.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Option<Instant>>>);

impl Answers {
    fn last(&self) -> Option<Instant> {
        *self.lock()
    }

    fn came(&self) {
        *self.lock() = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections to name servers that note when something is answered.
#[derive(Clone)]
struct Wire {
    io: TokioRuntimeProvider,
    answers: Answers,
}

impl ConnectionProvider for Wire {
    type Conn = Exchange;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Exchange, NetError>> + Send>>;
    type RuntimeProvider = TokioRuntimeProvider;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        context: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let (connecting, answers) = (self.io.new_connection(ip, config, context)?, self.answers.clone());
        Ok(Box::pin(async move { Ok(Exchange { exchange: connecting.await?, answers }) }))
    }

    fn runtime_provider(&self) -> &TokioRuntimeProvider {
        &self.io
    }
}

#[derive(Clone)]
struct Exchange {
    exchange: DnsExchange<TokioRuntimeProvider>,
    answers: Answers,
}

impl DnsHandle for Exchange {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let answers = self.answers.clone();
        Box::pin(self.exchange.send(request).map(move |answer| {
            let response = answer?;
            answers.came();
            match response.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => Ok(response),
                // As a failure of the connection it makes the pool wait for the other servers' answers.
                code => Err(io::Error::other(Refusal(code)).into()),
            }
        }))
    }
}

/// A name server answered that it can't tell.
#[derive(Debug, Error)]
#[error("the name server answered {0}")]
struct Refusal(ResponseCode);

/// The system's name servers and hosts, read again when their files have changed.
pub(crate) struct SystemNames {
    budget: Duration,
    state: Mutex<(Modified, Arc<Names>)>,
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// When the two files were modified, as far as they are there.
type Modified = [Option<SystemTime>; 2];

impl SystemNames {
    /// `budget` is for one look-up.
    pub(crate) fn new(budget: Duration) -> Result<SystemNames, NetError> {
        let modified = modified();
        Ok(SystemNames { budget, state: Mutex::new((modified, Arc::new(read(budget)?))) })
    }

    /// What to ask now.
    pub(crate) fn current(&self) -> Arc<Names> {
        let modified = modified();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != modified {
            match read(self.budget) {
                Ok(names) => {
                    tracing::info!("{RESOLV_CONF} and {HOSTS} read again");
                    *state = (modified, Arc::new(names));
                }
                Err(error) => tracing::warn!(%error, "{RESOLV_CONF} and {HOSTS} not read again"),
            }
        }
        state.1.clone()
    }
}

fn modified() -> Modified {
    [RESOLV_CONF, HOSTS].map(|file| std::fs::metadata(file).and_then(|found| found.modified()).ok())
}

fn read(budget: Duration) -> Result<Names, NetError> {
    let text = if_there(std::fs::read(Path::new(RESOLV_CONF)))?;
    let (config, options) = parse_resolv_conf(text).unwrap_or_else(|_| {
        // Without any name server in it, this machine's own is asked (resolv.conf(5)).
        let own = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_name_servers(vec![own]), ResolverOpts::default())
    });
    Names::new(config, options, if_there(Hosts::from_system())?, budget)
}

fn if_there<T: Default>(read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_name_server::{NameServer, Reply};

    const BUDGET: Duration = Duration::from_secs(1);
    const NO_NAME_SERVER: NameError = NameError::Local(LocalFailure::NoNameServer);

    fn address() -> IpAddr {
        [93, 184, 216, 34].into()
    }

    fn names(server: &NameServer) -> Names {
        server.names(Hosts::default(), BUDGET)
    }

    /// What one server, answering each question as `reply` says, makes of a name.
    async fn looked_up(
        name: &str,
        reply: impl Fn(&str, RecordType) -> Reply + Send + 'static,
    ) -> Result<Vec<IpAddr>, NameError> {
        names(&NameServer::start(reply).await).look_up(name).await
    }

    #[test]
    fn silence_is_the_zones_if_the_name_servers_have_answered_anything_since() {
        let asked_at = Instant::now();
        let before = asked_at - Duration::from_millis(1);
        assert_eq!(silence(asked_at, None), NO_NAME_SERVER);
        assert_eq!(silence(asked_at, Some(before)), NO_NAME_SERVER);
        assert_eq!(silence(asked_at, Some(asked_at)), NameError::ZoneSilent);
        assert_eq!(silence(before, Some(asked_at)), NameError::ZoneSilent);
    }

    #[tokio::test]
    async fn both_families_are_found_ipv6_first() {
        let v6: IpAddr = "2606:2800::1".parse().unwrap();
        let found = looked_up("example.com", move |_, family| match family {
            RecordType::A => Reply::Address(address()),
            _ => Reply::Address(v6),
        });
        assert_eq!(found.await.unwrap(), [v6, address()]);
    }

    #[tokio::test]
    async fn what_a_name_server_answers_is_about_the_name() {
        for (code, error) in [
            (ResponseCode::NXDomain, NameError::NoSuchName),
            (ResponseCode::NoError, NameError::NoAddress),
            (ResponseCode::ServFail, NameError::Refused(ResponseCode::ServFail)),
            (ResponseCode::Refused, NameError::Refused(ResponseCode::Refused)),
        ] {
            let asked_at = Instant::now();
            assert_eq!(looked_up("example.com", move |_, _| Reply::Code(code)).await, Err(error));
            assert!(asked_at.elapsed() < BUDGET, "nothing is waited for");
        }
        assert_eq!(looked_up("a..b", |_, _| Reply::Silence).await, Err(NameError::Malformed));
    }

    #[tokio::test]
    async fn silence_to_everything_is_ours() {
        let asked_at = Instant::now();
        assert_eq!(looked_up("example.com", |_, _| Reply::Silence).await, Err(NO_NAME_SERVER));
        assert!(asked_at.elapsed() < 2 * BUDGET);
    }

    #[tokio::test]
    async fn silence_for_one_name_while_others_are_answered_is_its_zones() {
        let server = NameServer::start(|name, _| match name {
            "example.com." => Reply::Address(address()),
            _ => Reply::Silence, // to the question for the root's servers, too
        });
        let names = names(&server.await);
        let (silent, ()) = tokio::join!(names.look_up("silent.example"), async {
            assert_eq!(names.look_up("example.com").await.unwrap(), [address()]);
        });
        assert_eq!(silent, Err(NameError::ZoneSilent));
        // Answered from the cache, which says nothing of the name servers.
        let (silent, ()) = tokio::join!(names.look_up("silent.example"), async {
            assert_eq!(names.look_up("example.com").await.unwrap(), [address()]);
        });
        assert_eq!(silent, Err(NO_NAME_SERVER));
    }

    #[tokio::test]
    async fn silence_for_the_only_name_asked_for_is_its_zones_while_the_roots_servers_are_known() {
        let silent = looked_up("silent.example", |name, _| match name {
            "." => Reply::Code(ResponseCode::NoError),
            _ => Reply::Silence,
        });
        assert_eq!(silent.await, Err(NameError::ZoneSilent));
    }

    #[tokio::test]
    async fn a_family_that_is_not_answered_does_not_hold_up_the_other() {
        let asked_at = Instant::now();
        let found = looked_up("example.com", |_, family| match family {
            RecordType::A => Reply::Address(address()),
            _ => Reply::Silence,
        });
        assert_eq!(found.await.unwrap(), [address()]);
        assert!(asked_at.elapsed() < BUDGET / 2);
        let missing = looked_up("example.com", |_, family| match family {
            RecordType::A => Reply::Code(ResponseCode::NXDomain),
            _ => Reply::Silence,
        });
        assert_eq!(missing.await, Err(NameError::NoSuchName));
    }

    #[tokio::test]
    async fn a_hundred_silent_names_hold_up_no_other() {
        let server = NameServer::start(|name, _| match name {
            "example.com." => Reply::Address(address()),
            _ => Reply::Silence,
        });
        let names = Arc::new(names(&server.await));
        let silent: Vec<_> = (0..100)
            .map(|n| {
                let names = names.clone();
                tokio::spawn(async move { names.look_up(&format!("silent-{n}.example")).await })
            })
            .collect();
        let asked_at = Instant::now();
        assert_eq!(names.look_up("example.com").await.unwrap(), [address()]);
        assert!(asked_at.elapsed() < BUDGET / 2);
        for silent in silent {
            assert_eq!(silent.await.unwrap(), Err(NameError::ZoneSilent));
        }
    }

    #[tokio::test]
    async fn one_name_server_that_refuses_is_not_believed_while_another_knows() {
        let refusing = NameServer::start(|_, _| Reply::Code(ResponseCode::Refused)).await;
        let knowing = NameServer::start(|_, family| match family {
            RecordType::A => Reply::Address(address()),
            _ => Reply::Code(ResponseCode::NoError),
        });
        let both = [refusing.config(), knowing.await.config()].concat();
        let config = ResolverConfig::from_name_servers(both);
        let names = Names::new(config, ResolverOpts::default(), Hosts::default(), BUDGET).unwrap();
        for _ in 0..5 {
            assert_eq!(names.look_up("example.com").await.unwrap(), [address()]);
            names.resolver.clear_cache();
        }
    }

    #[tokio::test]
    async fn an_answer_is_kept_as_long_as_it_says() {
        let server = NameServer::start(|name, _| match name {
            "kept.example." => Reply::Address(address()),
            _ => Reply::Brief(address()),
        });
        let (server, asked) = (server.await, |server: &NameServer| server.asked.lock().unwrap().len());
        let names = names(&server);
        for (name, questions) in [("kept.example", 1), ("brief.example", 3)] {
            let before = asked(&server);
            for _ in 0..3 {
                assert_eq!(names.look_up(name).await.unwrap(), [address()]);
            }
            let for_a = server
                .asked
                .lock()
                .unwrap()
                .iter()
                .skip(before)
                .filter(|(_, family)| *family == RecordType::A)
                .count();
            assert_eq!(for_a, questions, "{name}");
        }
    }

    #[tokio::test]
    async fn names_of_the_hosts_file_and_localhost_are_asked_of_nobody() {
        let server = NameServer::start(|_, _| Reply::Silence).await;
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf("10.1.2.3 Inside # a name\n".as_bytes()).unwrap();
        let names = server.names(hosts, BUDGET);
        assert_eq!(names.look_up("inside").await.unwrap(), [IpAddr::from([10, 1, 2, 3])]);
        let loopback = [IpAddr::from(std::net::Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()];
        for name in ["localhost", "a.localhost", "localhost."] {
            assert_eq!(names.look_up(name).await.unwrap(), loopback);
        }
        assert_eq!(names.look_up("no-such-host.invalid").await, Err(NameError::NoSuchName));
        assert!(server.asked.lock().unwrap().is_empty());
    }

    #[test]
    fn the_systems_configuration_can_be_used() {
        let system = SystemNames::new(BUDGET).unwrap();
        assert!(Arc::ptr_eq(&system.current(), &system.current()), "read once");
    }
}

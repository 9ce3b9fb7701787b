//! Asynchronous DNS lookups that distinguish an outage of our name servers from an unresponsive zone of a
//! customer's.

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Future, join_all, pending, select};
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsExchange, DnsHandle};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{ConnectionProvider, Hosts, PoolContext, Resolver};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};

use crate::shortage::shortage;
use engine::LocalFailure;

/// Why a lookup found no address. All variants but `Local` are about the name.
#[derive(Clone, Debug, Error, PartialEq)]
pub(crate) enum NameError {
    #[error("it is not a valid host name")]
    Malformed,
    /// NXDOMAIN.
    #[error("there is no such name")]
    NoSuchName,
    /// The name exists, but has no A or AAAA records.
    #[error("it has no address")]
    NoAddress,
    /// SERVFAIL, REFUSED and the like.
    #[error("the name server answered {0}")]
    ServerError(ResponseCode),
    #[error("{0}")]
    InvalidResponse(String),
    /// The name servers are up but did not answer for this name in time.
    #[error("no answer")]
    NoAnswer,
    #[error("{}", .0.detail())]
    Local(LocalFailure),
}

/// Returns the error of a lookup that got no response. A name server that has responded to any query since
/// `asked_at` is up: it was itself waiting for the servers of the name's zone.
///
/// The caller has sent a probe before, so an unresponsive zone is recognised even without other lookups.
fn no_response(asked_at: Instant, last_response_at: Option<Instant>) -> NameError {
    match last_response_at {
        Some(at) if at >= asked_at => NameError::NoAnswer,
        _ => NameError::Local(LocalFailure::NoNameServer),
    }
}

/// The clients of a set of name servers, with their caches.
pub(crate) struct Names {
    /// In the configured order.
    servers: Vec<Resolver<Wire>>,
    hosts: Hosts,
    responses: Responses,
    timeout: Duration,
}

/// Number of responses cached per name server.
const CACHE_SIZE: u64 = 1_000;
/// Upper bound of any TTL, in case a wrong record is corrected.
const MAX_TTL: Duration = Duration::from_secs(300);
/// Upper bound of the TTL of NXDOMAIN and empty responses: the record may be in the process of being created.
const NEGATIVE_MAX_TTL: Duration = Duration::from_secs(10);
/// Maximum number of name servers, as in glibc.
pub(crate) const MAX_SERVERS: usize = 3;
/// How long one address family waits for the other (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Maximum number of addresses used per name. They share the connect timeout.
const MAX_ADDRESSES: usize = 16;

/// Sockets held by one lookup without a response: A and AAAA queries, each sent three times to each name
/// server, from a separate socket each time.
pub(crate) const MAX_SOCKETS: usize = 2 * 3 * MAX_SERVERS;

impl Names {
    /// `timeout` is the limit of one lookup.
    pub(crate) fn new(
        config: ResolverConfig,
        mut options: ResolverOpts,
        hosts: Hosts,
        timeout: Duration,
    ) -> Result<Names, NetError> {
        let responses = Responses::default();
        // A single try, so that a late response to its first packet still counts.
        options.timeout = timeout;
        options.attempts = 0;
        options.cache_size = CACHE_SIZE;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(NEGATIVE_MAX_TTL);
        // hickory would query DNS for the address family that a name in the hosts file lacks.
        options.use_hosts_file = ResolveHosts::Never;
        let (domain, search, servers) = config.into_parts();
        let client = |server: NameServerConfig| {
            let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
            let wire = Wire { io: TokioRuntimeProvider::default(), responses: responses.clone() };
            Resolver::builder_with_config(config, wire).with_options(options.clone()).build()
        };
        let servers = servers.into_iter().take(MAX_SERVERS).map(client).collect::<Result<_, _>>()?;
        Ok(Names { servers, hosts, responses, timeout })
    }

    /// Returns the addresses of `host`, IPv6 first.
    pub(crate) async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, NameError> {
        let name = Name::from_str_relaxed(host).map_err(|_| NameError::Malformed)?;
        let found = self.in_hosts_file(&name);
        if !found.is_empty() {
            return Ok(found);
        }
        let asked_at = Instant::now();
        let found = tokio::select! {
            found = timeout(self.timeout, self.query_servers(&name)) => found,
            never = self.probe(asked_at) => never,
        };
        match found {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(Miss::Error(error))) => Err(error),
            Ok(Err(Miss::NoResponse)) | Err(_) => Err(no_response(asked_at, self.responses.last_at())),
        }
    }

    fn in_hosts_file(&self, name: &Name) -> Vec<IpAddr> {
        let found = [RecordType::AAAA, RecordType::A]
            .into_iter()
            .filter_map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), family)));
        found.flat_map(|found| addresses(&found)).collect()
    }

    /// Queries the root's name servers, which every recursive name server knows, if there was no response at
    /// all for half of the timeout. Never returns: it runs alongside its lookup.
    async fn probe<T>(&self, asked_at: Instant) -> T {
        sleep(self.timeout / 2).await;
        if self.responses.last_at().is_none_or(|at| at < asked_at) {
            self.query_root().await;
        }
        pending().await
    }

    async fn query_root(&self) {
        let queries = self.servers.iter().map(|server| async {
            server.clear_lookup_cache(Name::root(), RecordType::NS);
            let _ = server.lookup(Name::root(), RecordType::NS).await;
        });
        join_all(queries).await;
    }

    /// Whether a name server responds, whatever the response.
    pub(crate) async fn respond(&self) -> bool {
        let asked_at = Instant::now();
        let _ = timeout(self.timeout, self.query_root()).await;
        self.responses.last_at().is_some_and(|at| at >= asked_at)
    }

    /// Queries the name servers in order. Moves on to the next one after an inconclusive response, or after
    /// some time without a response.
    async fn query_servers(&self, name: &Name) -> Result<Vec<IpAddr>, Miss> {
        let mut servers = self.servers.iter();
        let mut queries = FuturesUnordered::new();
        let mut missed = Miss::NoResponse;
        loop {
            match servers.next() {
                Some(server) => queries.push(query(server, name)),
                None if queries.is_empty() => return Err(missed),
                None => {}
            }
            let head_start = if servers.len() > 0 { self.timeout / 4 } else { self.timeout };
            match timeout(head_start, queries.next()).await {
                Ok(Some(Err(miss))) if !miss.is_final() => missed = missed.or(miss),
                Ok(Some(found)) => return found,
                Ok(None) | Err(_) => {}
            }
        }
    }
}

/// Queries one name server for both address families at once. Once one family has addresses, waits only
/// briefly for the other: the servers of some zones drop AAAA queries.
async fn query(server: &Resolver<Wire>, name: &Name) -> Result<Vec<IpAddr>, Miss> {
    let v4 = pin!(server.lookup(name.clone(), RecordType::A));
    let v6 = pin!(server.lookup(name.clone(), RecordType::AAAA));
    let (first, other) = select(v6, v4).await.factor_first();
    let first = classify(first);
    let other = match &first {
        Err(Miss::Error(NameError::NoSuchName)) => return first,
        Ok(_) => timeout(RESOLUTION_DELAY, other).await.map_or(Err(Miss::NoResponse), classify),
        Err(_) => classify(other.await),
    };
    let mut found = match (first, other) {
        (Ok(first), Ok(other)) => [first, other].concat(),
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => found,
        (Err(first), Err(other)) => return Err(first.or(other)),
    };
    found.sort_by_key(IpAddr::is_ipv4);
    found.truncate(MAX_ADDRESSES);
    Ok(found)
}

/// Why a query returned no address.
#[derive(Clone, Debug, PartialEq)]
enum Miss {
    NoResponse,
    Error(NameError),
}

impl Miss {
    /// Whether the miss is final, so that no other name server has to be queried.
    fn is_final(&self) -> bool {
        use NameError::{InvalidResponse, ServerError};
        !matches!(self, Miss::NoResponse | Miss::Error(ServerError(_) | InvalidResponse(_)))
    }

    /// Returns the more informative miss of two queries for one name. `NoAddress` holds only if both families
    /// report it.
    fn or(self, other: Miss) -> Miss {
        let weight = |miss: &Miss| match miss {
            Miss::Error(NameError::NoSuchName | NameError::Malformed) => 4,
            Miss::Error(NameError::Local(_)) => 3,
            Miss::Error(NameError::ServerError(_) | NameError::InvalidResponse(_) | NameError::NoAnswer) => 2,
            Miss::NoResponse => 1,
            Miss::Error(NameError::NoAddress) => 0,
        };
        if weight(&other) > weight(&self) { other } else { self }
    }
}

fn classify(response: Result<Lookup, NetError>) -> Result<Vec<IpAddr>, Miss> {
    let error = match response {
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
        NetError::Dns(DnsError::ResponseCode(code)) => NameError::ServerError(code),
        NetError::Message(NO_SOCKET) => NameError::Local(LocalFailure::NoSocket),
        NetError::Timeout | NetError::Io(_) | NetError::NoConnections | NetError::Busy => {
            return Err(Miss::NoResponse);
        }
        invalid => NameError::InvalidResponse(invalid.to_string()),
    }))
}

fn addresses(found: &Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// When a name server last responded, whatever the response. Cached responses don't count.
#[derive(Clone, Default)]
struct Responses(Arc<Mutex<Option<Instant>>>);

impl Responses {
    fn last_at(&self) -> Option<Instant> {
        *self.0.lock()
    }

    fn record(&self) {
        *self.0.lock() = Some(Instant::now());
    }
}

/// Connects to name servers and records when they respond.
#[derive(Clone)]
struct Wire {
    io: TokioRuntimeProvider,
    responses: Responses,
}

/// Represents an I/O error for lack of sockets: hickory reports every I/O error as "no connections".
const NO_SOCKET: &str = "no socket";

fn keep_shortage(error: NetError) -> NetError {
    match &error {
        NetError::Io(io) if shortage(io) == Some(LocalFailure::NoSocket) => NetError::Message(NO_SOCKET),
        _ => error,
    }
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
        let (connecting, responses) = (self.io.new_connection(ip, config, context)?, self.responses.clone());
        Ok(Box::pin(async move {
            let exchange = connecting.await.map_err(keep_shortage)?;
            Ok(Exchange { exchange, responses })
        }))
    }

    fn runtime_provider(&self) -> &TokioRuntimeProvider {
        &self.io
    }
}

#[derive(Clone)]
struct Exchange {
    exchange: DnsExchange<TokioRuntimeProvider>,
    responses: Responses,
}

impl DnsHandle for Exchange {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let responses = self.responses.clone();
        Box::pin(self.exchange.send(request).map(move |response| {
            let response = response.map_err(keep_shortage)?;
            responses.record();
            Ok(response)
        }))
    }
}

#[cfg(test)]
mod tests;

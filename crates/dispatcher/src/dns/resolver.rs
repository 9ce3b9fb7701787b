//! Name resolution under the egress policy: the client only receives addresses that may be called.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use contracts::{FailureReason, OrgId};
use egress::Policy;
use futures_util::future::{BoxFuture, FutureExt};
use hickory_resolver::net::NetError;
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::dns::names::{MAX_SOCKETS, NameError, Names};
use crate::dns::system::SystemNames;
use crate::exchange::trace::Trace;
use crate::shortage::has_route;
use engine::{LocalFailure, Outcome};

/// Resolves each name once per connection and drops refused addresses.
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    lookups: Arc<Lookups>,
}

impl Resolver {
    /// Resolves with the system's configuration.
    pub(crate) fn new(
        policy: Arc<Policy>,
        connect_timeout: Duration,
        max_in_flight: usize,
    ) -> Result<Resolver, NetError> {
        let system = SystemNames::new(lookup_timeout(connect_timeout))?;
        Ok(Resolver::with(policy, move || system.current(), connect_timeout / SHARES, max_in_flight))
    }

    /// Resolves with the given name servers.
    pub(crate) fn with(
        policy: Arc<Policy>,
        names: impl Fn() -> Arc<Names> + Send + Sync + 'static,
        slot_timeout: Duration,
        max_in_flight: usize,
    ) -> Resolver {
        let look_up = move |name: String| {
            let names = names();
            async move { names.look_up(&name).await }.boxed()
        };
        Resolver { policy, lookups: Lookups::new(look_up, slot_timeout, max_in_flight) }
    }
}

/// Shares of the connect timeout: one to wait for a free lookup slot, three for the lookup. Both must end
/// before the connect timeout, which would be attributed to the receiver.
const SHARES: u32 = 5;
const LOOKUP_SHARES: u32 = 3;

/// Returns the limit of one lookup.
pub(crate) fn lookup_timeout(connect_timeout: Duration) -> Duration {
    LOOKUP_SHARES * (connect_timeout / SHARES)
}

/// Why there is no address to connect to.
#[derive(Debug, Error)]
pub(crate) enum ResolveError {
    /// The name doesn't exist, has no address or only refused ones. Customers get the same error for all of
    /// these; otherwise they could find out which internal names exist.
    #[error("{0} does not resolve to an address that may be called")]
    NoAddress(String),
    #[error("{0} could not be resolved: {1}")]
    Lookup(String, NameError),
    #[error("{0} has no address that can be reached from here")]
    NoRoute(String),
}

impl ResolveError {
    /// Returns the outcome of an attempt that fails with this error.
    pub(crate) fn outcome(&self) -> Outcome {
        let reason = match self {
            ResolveError::Lookup(_, NameError::Local(failure)) => return Outcome::NotSent(*failure),
            ResolveError::NoAddress(_) | ResolveError::Lookup(..) => FailureReason::DnsError,
            ResolveError::NoRoute(_) => FailureReason::ConnectionError,
        };
        Outcome::failed(reason, self.to_string())
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, lookups) = (self.policy.clone(), self.lookups.clone());
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let org = Trace::current().map(|trace| {
                trace.resolve_began();
                trace.org_id()
            });
            let found = lookups.look_up(org, &name).await;
            // `None` if the request was sent on another connection meanwhile.
            let trace = Trace::current();
            let trace = trace.as_deref();
            trace.inspect(|trace| trace.resolve_ended());
            let found = found.map_err(|error| match error {
                NameError::NoSuchName | NameError::NoAddress => ResolveError::NoAddress(name.clone()),
                error => ResolveError::Lookup(name.clone(), error),
            });
            let addresses = found.and_then(|found| permitted(&policy, &name, &found, trace));
            if let (Some(trace), Err(ResolveError::NoAddress(_))) = (trace, &addresses) {
                trace.forget_times();
            }
            let addresses = addresses?;
            // The client fills in the port.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// Limits the number of concurrent lookups, in total and per organization, and makes an organization's
/// attempts share one lookup per name. Attempts whose name servers are silent must not use up the slots of
/// others.
struct Lookups {
    look_up: LookUp,
    slots: Semaphore,
    slots_per_organization: usize,
    /// How long a lookup waits for a slot.
    slot_timeout: Duration,
    state: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    lookups: HashMap<Subject, watch::Receiver<Option<Found>>>,
    /// The slots of organizations with lookups in progress.
    organizations: HashMap<Option<OrgId>, Arc<Semaphore>>,
}

/// The organization and the name of a lookup. Organizations share neither lookups nor slots.
type Subject = (Option<OrgId>, String);

/// Looks up a name, with a timeout of its own.
type LookUp = Box<dyn Fn(String) -> BoxFuture<'static, Result<Vec<IpAddr>, NameError>> + Send + Sync>;
type Found = Result<Arc<[IpAddr]>, NameError>;

/// Maximum number of concurrent lookups, further limited to a quarter of the file descriptors.
const MAX_LOOKUPS: u64 = 1024;
const MIN_LOOKUPS: u64 = 8;
/// An organization may use one in this many slots.
const ORGANIZATION_SHARE: usize = 4;

/// Returns the number of lookup slots: at most `max_in_flight`, or the share of an organization would be no
/// limit.
fn max_lookups(files: Option<u64>, max_in_flight: usize) -> usize {
    let share = files.map_or(MAX_LOOKUPS, |files| files / 4 / MAX_SOCKETS as u64);
    share.min(max_in_flight as u64).clamp(MIN_LOOKUPS, MAX_LOOKUPS) as usize
}

impl Lookups {
    fn new(
        look_up: impl Fn(String) -> BoxFuture<'static, Result<Vec<IpAddr>, NameError>> + Send + Sync + 'static,
        slot_timeout: Duration,
        max_in_flight: usize,
    ) -> Arc<Lookups> {
        let max = max_lookups(getrlimit(Resource::Nofile).current, max_in_flight);
        Arc::new(Lookups {
            look_up: Box::new(look_up),
            slots: Semaphore::new(max),
            slots_per_organization: max / ORGANIZATION_SHARE,
            slot_timeout,
            state: Mutex::default(),
        })
    }

    async fn look_up(self: &Arc<Self>, org: Option<OrgId>, name: &str) -> Found {
        let subject = (org, name.to_owned());
        let mut answer = {
            let mut running = self.state.lock();
            // A closed channel means that the lookup panicked.
            let known = running.lookups.get(&subject).filter(|answer| answer.has_changed().is_ok()).cloned();
            known.unwrap_or_else(|| {
                let (asked, answer) = watch::channel(None);
                running.lookups.insert(subject.clone(), answer.clone());
                let slots = running.organizations.entry(org);
                let slots = slots.or_insert_with(|| Arc::new(Semaphore::new(self.slots_per_organization)));
                tokio::spawn(self.clone().run(subject, slots.clone(), asked));
                answer
            })
        };
        let found = answer.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        // `None`: the lookup panicked, or the runtime is shutting down.
        found.unwrap_or(Err(NameError::Local(LocalFailure::NoNameServer)))
    }

    async fn run(
        self: Arc<Self>,
        subject: Subject,
        organization_slots: Arc<Semaphore>,
        result: watch::Sender<Option<Found>>,
    ) {
        let slots = async {
            let of_organization = organization_slots.acquire().await;
            (of_organization, self.slots.acquire().await)
        };
        let found = match timeout(self.slot_timeout, slots).await {
            Ok(_slots) => {
                if self.is_abandoned(&subject, &result) {
                    return;
                }
                (self.look_up)(subject.1.clone()).await
            }
            // All slots are waiting for responses.
            Err(_) => Err(NameError::Local(LocalFailure::NoLookup)),
        };
        // Later callers start a new lookup.
        self.state.lock().forget(&subject);
        result.send_replace(Some(found.map(Arc::from)));
    }

    /// Whether no caller waits for the result any more. If so, removes the lookup.
    fn is_abandoned(&self, subject: &Subject, result: &watch::Sender<Option<Found>>) -> bool {
        let mut running = self.state.lock();
        // `running` itself holds a receiver.
        let is_abandoned = result.receiver_count() == 1;
        if is_abandoned {
            running.forget(subject);
        }
        is_abandoned
    }
}

impl Running {
    fn forget(&mut self, subject: &Subject) {
        self.lookups.remove(subject);
        // The map and each running or waiting lookup hold one reference: this lookup is the last.
        if self.organizations.get(&subject.0).is_some_and(|slots| Arc::strong_count(slots) <= 2) {
            self.organizations.remove(&subject.0);
        }
    }
}

/// Returns the addresses in `found` that may be called and have a route.
fn permitted(
    policy: &Policy,
    name: &str,
    found: &[IpAddr],
    trace: Option<&Trace>,
) -> Result<Vec<IpAddr>, ResolveError> {
    let (mut permitted, refused): (Vec<IpAddr>, Vec<IpAddr>) =
        found.iter().partition(|address| policy.judge_address(**address).is_ok());
    if let (Some(trace), Some(refused)) = (trace, refused.first()) {
        trace.refused(*refused);
    }
    if permitted.is_empty() {
        return Err(ResolveError::NoAddress(name.to_owned()));
    }
    // Connecting to an address without a route fails with the error of a shortage of local ports.
    permitted.retain(|address| address.is_ipv4() || has_route(*address));
    if permitted.is_empty() { Err(ResolveError::NoRoute(name.to_owned())) } else { Ok(permitted) }
}

#[cfg(test)]
mod tests;

//! Name resolution under the egress policy: the client only ever sees addresses that were judged.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::FailureReason;
use egress::{Policy, Refused};
use futures_util::future::BoxFuture;
use hickory_resolver::net::NetError;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::names::{MOST_SOCKETS, NameError, Names, SystemNames};
use crate::shortage::has_route;
use engine::{LocalFailure, Outcome};

/// Resolves each name once per connection and drops refused addresses.
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    lookups: Arc<Lookups>,
}

impl Resolver {
    /// Asks the system's name servers.
    pub(crate) fn new(policy: Arc<Policy>, connect_timeout: Duration) -> Result<Resolver, NetError> {
        let share = connect_timeout / SHARES;
        let system = Arc::new(SystemNames::new(LOOKUP_SHARES * share)?);
        let ask = move |name: String| -> BoxFuture<'static, _> {
            let names = system.current();
            Box::pin(async move { names.look_up(&name).await })
        };
        Ok(Resolver { policy, lookups: Lookups::new(ask, share) })
    }

    /// Asks certain name servers.
    #[cfg(test)]
    pub(crate) fn with_names(policy: Arc<Policy>, names: Names) -> Resolver {
        let names = Arc::new(names);
        let ask = move |name: String| -> BoxFuture<'static, _> {
            let names = names.clone();
            Box::pin(async move { names.look_up(&name).await })
        };
        Resolver { policy, lookups: Lookups::new(ask, Duration::from_secs(1)) }
    }
}

/// The time for connecting, in shares: one to wait for a free look-up, some to look up. The rest is for the connection,
/// so that a name that takes too long is told from a connection that does.
const SHARES: u32 = 5;
const LOOKUP_SHARES: u32 = 3;

/// Why there is no address to connect to.
#[derive(Debug, Error)]
pub(crate) enum ResolveError {
    #[error("{0} could not be resolved: {1}")]
    Lookup(String, NameError),
    #[error("{0} has no address that may be called: {1}")]
    Blocked(String, Refused),
    #[error("{0} has no address that can be reached from here")]
    NoRoute(String),
}

impl ResolveError {
    /// The outcome of an attempt that this ends.
    pub(crate) fn outcome(&self) -> Outcome {
        let reason = match self {
            ResolveError::Lookup(_, NameError::Local(failure)) => return Outcome::NotSent(*failure),
            ResolveError::Lookup(..) => FailureReason::DnsError,
            ResolveError::Blocked(..) => FailureReason::BlockedAddress,
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
            let found = lookups.look_up(&name).await;
            let found = found.map_err(|error| ResolveError::Lookup(name.clone(), error))?;
            let addresses = permitted(&policy, &name, &found)?;
            // The client fills in the port.
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// Look-ups under way. A name that is being looked up is not looked up again meanwhile: names that nobody answers for
/// must not take the look-ups, which are limited, from all others.
struct Lookups {
    ask: Ask,
    free: Semaphore,
    /// How long one waits to be free.
    wait: Duration,
    under_way: Mutex<HashMap<String, watch::Receiver<Option<Found>>>>,
}

/// What looks a name up, in limited time.
type Ask = Box<dyn Fn(String) -> BoxFuture<'static, Result<Vec<IpAddr>, NameError>> + Send + Sync>;
type Found = Result<Arc<[IpAddr]>, NameError>;

/// Look-ups under way at most: as many as there may be attempts, as far as a quarter of the files is enough for them.
const MOST_LOOKUPS: u64 = 1024;
const LEAST_LOOKUPS: u64 = 8;

fn most_lookups(files: Option<u64>) -> usize {
    let share = files.map_or(MOST_LOOKUPS, |files| files / 4 / MOST_SOCKETS as u64);
    share.clamp(LEAST_LOOKUPS, MOST_LOOKUPS) as usize
}

impl Lookups {
    fn new(
        ask: impl Fn(String) -> BoxFuture<'static, Result<Vec<IpAddr>, NameError>> + Send + Sync + 'static,
        wait: Duration,
    ) -> Arc<Lookups> {
        let free = Semaphore::new(most_lookups(getrlimit(Resource::Nofile).current));
        Arc::new(Lookups { ask: Box::new(ask), free, wait, under_way: Mutex::default() })
    }

    async fn look_up(self: &Arc<Self>, name: &str) -> Found {
        let mut answer = {
            let mut under_way = self.under_way();
            // Closed only if its task has panicked.
            let known = under_way.get(name).filter(|answer| answer.has_changed().is_ok()).cloned();
            known.unwrap_or_else(|| {
                let (asked, answer) = watch::channel(None);
                under_way.insert(name.to_owned(), answer.clone());
                tokio::spawn(self.clone().answer(name.to_owned(), asked));
                answer
            })
        };
        let found = answer.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        // `None` only when the runtime is shutting down.
        found.unwrap_or(Err(NameError::Local(LocalFailure::NoNameServer)))
    }

    async fn answer(self: Arc<Self>, name: String, answer: watch::Sender<Option<Found>>) {
        let found = match timeout(self.wait, self.free.acquire()).await {
            Ok(_free) => {
                if self.is_abandoned(&name, &answer) {
                    return;
                }
                (self.ask)(name.clone()).await
            }
            // All look-ups wait for an answer, and have for some time.
            Err(_) => Err(NameError::Local(LocalFailure::NoNameServer)),
        };
        // Later callers start a new look-up.
        self.under_way().remove(&name);
        answer.send_replace(Some(found.map(Arc::from)));
    }

    /// Whether nobody waits for the answer any more. The name is free again then.
    fn is_abandoned(&self, name: &str, answer: &watch::Sender<Option<Found>>) -> bool {
        let mut under_way = self.under_way();
        // One receiver is kept beside the name.
        let is_abandoned = answer.receiver_count() == 1;
        if is_abandoned {
            under_way.remove(name);
        }
        is_abandoned
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Found>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that may be called and can be reached.
fn permitted(policy: &Policy, name: &str, found: &[IpAddr]) -> Result<Vec<IpAddr>, ResolveError> {
    let mut refused = None;
    let mut permitted = Vec::new();
    for &address in found {
        match policy.judge_address(address) {
            Ok(()) => permitted.push(address),
            Err(reason) => refused = Some(reason),
        }
    }
    if let (true, Some(reason)) = (permitted.is_empty(), refused) {
        return Err(ResolveError::Blocked(name.to_owned(), reason));
    }
    // A connection to an address without a route fails as if local ports had run out.
    permitted.retain(|address| address.is_ipv4() || has_route(*address));
    if permitted.is_empty() { Err(ResolveError::NoRoute(name.to_owned())) } else { Ok(permitted) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;

    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn judged(found: &[&str]) -> Result<Vec<IpAddr>, ResolveError> {
        let found: Vec<_> = found.iter().map(|address| address.parse().unwrap()).collect();
        permitted(&Policy::default(), "example.com", &found)
    }

    #[test]
    fn refused_addresses_are_left_out_and_a_name_with_no_other_is_blocked() {
        assert_eq!(judged(&["10.0.0.1", "93.184.216.34"]).unwrap().len(), 1);
        assert!(matches!(judged(&["127.0.0.1", "::1"]), Err(ResolveError::Blocked(..))));
    }

    #[test]
    fn look_ups_are_bounded_by_the_files_they_may_need() {
        assert_eq!([None, Some(1 << 20), Some(128)].map(most_lookups), [1024, 1024, 8]);
        assert_eq!(most_lookups(Some(20_000)), 277);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_ask_meanwhile_and_again_for_who_comes_later() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static GO_ON: Semaphore = Semaphore::const_new(0);
        let ask = |_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            async {
                GO_ON.acquire().await.unwrap().forget();
                Ok(vec!["192.0.2.1".parse().unwrap()])
            }
            .boxed()
        };
        let lookups = Lookups::new(ask, LONG);
        for calls in 1..=2 {
            let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(lookups.look_up("example.com"))).collect();
            for look_up in &mut waiting {
                assert!(look_up.now_or_never().is_none());
            }
            GO_ON.add_permits(1);
            for look_up in waiting {
                assert_eq!(look_up.await.unwrap().len(), 1);
            }
            assert_eq!(CALLS.load(Ordering::Relaxed), calls);
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_looked_up() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let ask = |_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            async { Ok(vec![]) }.boxed()
        };
        let lookups = Lookups::new(ask, LONG);
        let all = lookups.free.acquire_many(lookups.free.available_permits() as u32).await.unwrap();
        assert!(lookups.look_up("example.com").now_or_never().is_none());
        drop(all);
        while !lookups.under_way.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn with_every_look_up_taken_by_silent_names_another_costs_no_attempt() {
        let lookups = Lookups::new(|_| async { Ok(vec![]) }.boxed(), Duration::from_millis(10));
        let _all = lookups.free.acquire_many(lookups.free.available_permits() as u32).await.unwrap();
        let missed = NameError::Local(LocalFailure::NoNameServer);
        assert_eq!(lookups.look_up("example.com").await, Err(missed));
        assert!(lookups.under_way().is_empty());
    }
}

//! Name resolution under the egress policy: the client only ever sees addresses that were judged.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use egress::{Policy, Refused};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use tokio::sync::{Semaphore, watch};

/// Resolves each name once per connection and drops refused addresses.
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    lookups: Arc<Lookups>,
}

impl Resolver {
    pub(crate) fn new(policy: Arc<Policy>) -> Resolver {
        // The client fills in the port.
        let system = |name: &str| Ok((name, 0).to_socket_addrs()?.collect());
        Resolver { policy, lookups: Arc::new(Lookups::new(system)) }
    }
}

/// Why there is no address to connect to.
#[derive(Debug, Error)]
pub(crate) enum ResolveError {
    #[error("{0} could not be resolved: {1}")]
    Lookup(String, Arc<io::Error>),
    #[error("{0} has no address")]
    NoAddress(String),
    #[error("{0} has no address that may be called: {1}")]
    Blocked(String, Refused),
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, lookups) = (self.policy.clone(), self.lookups.clone());
        Box::pin(async move {
            let name = name.as_str().to_owned();
            let found = lookups.look_up(&name).await;
            let found = found.map_err(|error| ResolveError::Lookup(name.clone(), error))?;
            let addresses = permitted(&policy, &name, found.iter().copied())?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// Look-ups under way. One holds a thread until the system gives it up, long after its attempt has, and the database's
/// transactions use the same threads. So only so many hold one, and a name that is being looked up is not looked up
/// again meanwhile: names that nobody answers for must not take the threads from all others.
struct Lookups {
    system: System,
    threads: Semaphore,
    under_way: Mutex<HashMap<String, watch::Receiver<Option<Found>>>>,
}

/// What looks a name up, and blocks.
type System = fn(&str) -> io::Result<Arc<[SocketAddr]>>;
type Found = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

const THREADS: usize = 64;

impl Lookups {
    fn new(system: System) -> Lookups {
        Lookups { system, threads: Semaphore::new(THREADS), under_way: Mutex::default() }
    }

    async fn look_up(self: &Arc<Self>, name: &str) -> Found {
        let mut answer = {
            let mut under_way = self.under_way();
            let known = under_way.get(name).cloned();
            known.unwrap_or_else(|| {
                let (asked, answer) = watch::channel(None);
                under_way.insert(name.to_owned(), answer.clone());
                tokio::spawn(self.clone().ask(name.to_owned(), asked));
                answer
            })
        };
        let found = answer.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        // None only when the runtime is shutting down.
        found.unwrap_or_else(|| Err(Arc::new(io::Error::other("the look-up was given up"))))
    }

    async fn ask(self: Arc<Self>, name: String, answer: watch::Sender<Option<Found>>) {
        let _thread = self.threads.acquire().await;
        {
            let mut under_way = self.under_way();
            // One receiver is kept beside the name: does anybody else still wait?
            if answer.receiver_count() == 1 {
                under_way.remove(&name);
                return;
            }
        }
        let (system, asked) = (self.system, name.clone());
        let found = tokio::task::spawn_blocking(move || system(&asked)).await.map_err(io::Error::from);
        // Who comes from here on wants a fresh answer.
        self.under_way().remove(&name);
        answer.send_replace(Some(found.flatten().map_err(Arc::new)));
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Option<Found>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn permitted(
    policy: &Policy,
    name: &str,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let mut refused = None;
    let mut permitted = Vec::new();
    for address in found {
        match policy.judge_address(address.ip()) {
            Ok(()) => permitted.push(address),
            Err(reason) => refused = Some(reason),
        }
    }
    match refused {
        Some(reason) if permitted.is_empty() => Err(ResolveError::Blocked(name.to_owned(), reason)),
        None if permitted.is_empty() => Err(ResolveError::NoAddress(name.to_owned())),
        _ => Ok(permitted),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;

    use super::*;

    fn judged(found: &[&str]) -> Result<Vec<SocketAddr>, ResolveError> {
        permitted(&Policy::default(), "example.com", found.iter().map(|address| address.parse().unwrap()))
    }

    #[test]
    fn refused_addresses_are_left_out_and_a_name_with_no_other_is_blocked() {
        assert_eq!(judged(&["10.0.0.1:0", "93.184.216.34:0"]).unwrap().len(), 1);
        assert!(matches!(judged(&["127.0.0.1:0", "[::1]:0"]), Err(ResolveError::Blocked(..))));
        assert!(matches!(judged(&[]), Err(ResolveError::NoAddress(_))));
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_all_who_ask_meanwhile_and_again_for_who_comes_later() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        static GO_ON: Barrier = Barrier::new(2);
        let lookups = Arc::new(Lookups::new(|_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            GO_ON.wait();
            Ok(Arc::new(["192.0.2.1:0".parse().unwrap()]))
        }));
        for calls in 1..=2 {
            let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(lookups.look_up("example.com"))).collect();
            for look_up in &mut waiting {
                assert!(look_up.now_or_never().is_none());
            }
            tokio::task::spawn_blocking(|| GO_ON.wait()).await.unwrap();
            for look_up in waiting {
                assert_eq!(look_up.await.unwrap().len(), 1);
            }
            assert_eq!(CALLS.load(Ordering::Relaxed), calls);
        }
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_looked_up() {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let lookups = Arc::new(Lookups::new(|_| {
            CALLS.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::new([]))
        }));
        let threads = lookups.threads.acquire_many(THREADS as u32).await.unwrap();
        assert!(lookups.look_up("example.com").now_or_never().is_none());
        drop(threads);
        while !lookups.under_way.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    }
}

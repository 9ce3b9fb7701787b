//! Name resolution under the egress policy: the client only ever sees addresses that were judged.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use egress::{Policy, Refused};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use thiserror::Error;
use tokio::sync::Semaphore;

/// Resolves each name once per connection and drops refused addresses.
pub(crate) struct Resolver {
    policy: Arc<Policy>,
    lookups: Arc<Semaphore>,
}

/// A look-up holds a thread until the system gives it up, long after its attempt has. Only so many may, since the
/// database's transactions use the same threads.
const LOOKUPS: usize = 64;

impl Resolver {
    pub(crate) fn new(policy: Arc<Policy>) -> Resolver {
        Resolver { policy, lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }
}

/// Why there is no address to connect to.
#[derive(Debug, Error)]
pub(crate) enum ResolveError {
    #[error("{0} could not be resolved: {1}")]
    Lookup(String, std::io::Error),
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
            let permit = lookups.acquire_owned().await?;
            let found = tokio::task::spawn_blocking({
                let name = name.clone();
                move || {
                    let _permit = permit;
                    // The client fills in the port.
                    (name.as_str(), 0).to_socket_addrs()
                }
            });
            let found = found.await?.map_err(|error| ResolveError::Lookup(name.clone(), error))?;
            let addresses = permitted(&policy, &name, found)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
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
}

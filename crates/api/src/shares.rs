//! What each client may have at once: connections, or behind a trusted proxy, whose connections serve many clients,
//! requests that wait for their answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::Error;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Data;

use crate::Api;
use crate::client::{client, is_trusted};
use crate::error::ApiError;
use crate::keeping::Keeping;
use crate::rate_limit::network;

/// How much each client has. It has as many entries as there are connections at most.
pub(crate) struct Shares {
    /// Any number if none.
    most: Option<usize>,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until this is dropped.
pub(crate) struct Share(Arc<Shares>, IpAddr);

impl Shares {
    pub(crate) fn new(most: Option<usize>) -> Shares {
        Shares { most, taken: Mutex::default() }
    }

    /// One more for that client, unless it has as many as it may.
    pub(crate) fn take(self: &Arc<Shares>, client: IpAddr) -> Option<Share> {
        let client = network(client);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(client).or_default();
        if self.most.is_some_and(|most| *count >= most) {
            return None;
        }
        *count += 1;
        Some(Share(self.clone(), client))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Share(shares, client) = self;
        let mut taken = shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = taken.entry(*client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Refuses a request that a trusted proxy passes on for a client that waits for too many answers already.
pub(crate) async fn layer(
    request: ServiceRequest,
    next: Next<impl MessageBody + Unpin + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    const WAIT: Duration = Duration::from_secs(1);
    let mut share = None;
    if let (Some(api), Some(shares)) = (request.app_data::<Data<Api>>(), request.app_data::<Data<Shares>>())
        && let Some(peer) = request.peer_addr()
        && is_trusted(peer.ip(), &api.trusted_proxies)
    {
        let client = client(request.request(), &api.trusted_proxies);
        // A proxy that names no client speaks for itself.
        if client != peer.ip().to_canonical() {
            share = shares.clone().into_inner().take(client);
            if share.is_none() {
                let refused = request.error_response(ApiError::RateLimited(WAIT));
                return Ok(refused.map_into_right_body());
            }
        }
    }
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| EitherBody::left(Keeping::new(body, share))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_at_once_and_no_more() {
        let shares = Arc::new(Shares::new(Some(2)));
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|client| client.parse::<IpAddr>().unwrap());
        let kept = [shares.take(one), shares.take(one)];
        assert!(kept.iter().all(Option::is_some));
        assert!(shares.take(one).is_none());
        assert!(shares.take(other).is_some());
        drop(kept);
        assert!(shares.take(one).is_some());
        assert!(shares.taken.lock().unwrap().is_empty(), "who has nothing is forgotten");
    }

    #[test]
    fn without_a_limit_a_client_has_any_number() {
        let shares = Arc::new(Shares::new(None));
        let kept: Vec<_> = (0..10_000).map(|_| shares.take(IpAddr::from([192, 0, 2, 1]))).collect();
        assert!(kept.iter().all(Option::is_some));
    }
}

//! Limits per client: connections, or requests in flight behind a trusted proxy, since its connections serve
//! many clients.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::Error;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Data;
use parking_lot::Mutex;

use crate::context::Api;
use crate::error::ApiError;
use crate::guards::rate_limit::network;
use crate::transport::client::{client, is_trusted};
use crate::transport::owning_body::OwningBody;

/// Usage per client. Has at most as many entries as there are connections.
pub(crate) struct ClientSlots {
    /// Limit per client; `None` is unlimited.
    most: Option<usize>,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection or request of a client. Released on drop.
pub(crate) struct ClientSlot(Arc<ClientSlots>, IpAddr);

impl ClientSlots {
    pub(crate) fn new(most: Option<usize>) -> ClientSlots {
        ClientSlots { most, taken: Mutex::default() }
    }

    /// Counts one more for `client`. `None` if the client has reached its limit.
    pub(crate) fn take(self: &Arc<ClientSlots>, client: IpAddr) -> Option<ClientSlot> {
        let client = network(client);
        let mut taken = self.taken.lock();
        let count = taken.entry(client).or_default();
        if self.most.is_some_and(|most| *count >= most) {
            return None;
        }
        *count += 1;
        Some(ClientSlot(self.clone(), client))
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let ClientSlot(slots, client) = self;
        let mut taken = slots.taken.lock();
        if let Entry::Occupied(mut count) = taken.entry(*client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Refuses a request from a trusted proxy if its client has too many requests in flight.
pub(crate) async fn layer(
    request: ServiceRequest,
    next: Next<impl MessageBody + Unpin + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    const WAIT: Duration = Duration::from_secs(1);
    let mut slot = None;
    if let (Some(api), Some(slots)) =
        (request.app_data::<Data<Api>>(), request.app_data::<Data<ClientSlots>>())
        && let Some(peer) = request.peer_addr()
        && is_trusted(peer.ip(), &api.trusted_proxies)
    {
        let client = client(request.request(), &api.trusted_proxies);
        // If a proxy names no client, the request is the proxy's own.
        if client != peer.ip().to_canonical() {
            slot = slots.clone().into_inner().take(client);
            if slot.is_none() {
                let refused = request.error_response(ApiError::RateLimited(WAIT));
                return Ok(refused.map_into_right_body());
            }
        }
    }
    let response = next.call(request).await?;
    Ok(response.map_body(|_, body| EitherBody::left(OwningBody::new(body, slot))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_refused_at_its_limit() {
        let slots = Arc::new(ClientSlots::new(Some(2)));
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|client| client.parse::<IpAddr>().unwrap());
        let kept = [slots.take(one), slots.take(one)];
        assert!(kept.iter().all(Option::is_some));
        assert!(slots.take(one).is_none());
        assert!(slots.take(other).is_some());
        drop(kept);
        assert!(slots.take(one).is_some());
        assert!(slots.taken.lock().is_empty(), "clients without connections are dropped");
    }

    #[test]
    fn without_a_limit_a_client_is_never_refused() {
        let slots = Arc::new(ClientSlots::new(None));
        let kept: Vec<_> = (0..10_000).map(|_| slots.take(IpAddr::from([192, 0, 2, 1]))).collect();
        assert!(kept.iter().all(Option::is_some));
    }
}

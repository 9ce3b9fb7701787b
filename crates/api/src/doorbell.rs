//! Ringing for what was accepted.

use contracts::{Destination, Job};
use store::Accepted;

use crate::Api;

impl Api {
    /// Rings for a delivery that has been committed. Without a doorbell the relay serves it a little later, so
    /// nothing here waits or fails.
    pub(crate) fn ring(&self, accepted: &Accepted, request_id: String) {
        // A build for failure tests can be made to die here: the variable `FAILPOINTS=committed=return` does it.
        #[cfg(feature = "failpoints")]
        fail::fail_point!("committed", |_| std::process::abort());
        let delivery = &accepted.delivery;
        self.publisher.ring(Job {
            version: Job::VERSION,
            delivery_id: delivery.id,
            attempt: 1,
            destination: Destination::of(accepted.org_id, &delivery.callback_url),
            payload_size: Some(delivery.payload_bytes.len() as u64),
            org_id: accepted.org_id,
            request_id,
        });
    }
}

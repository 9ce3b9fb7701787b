//! Ringing for what was accepted.

use contracts::{Destination, Job};
use egress::TargetUrl;
use store::Accepted;

use crate::Api;

impl Api {
    /// Rings for a delivery that has been committed. Without a doorbell the relay serves it a little later, so
    /// nothing here waits or fails.
    pub(crate) fn ring(&self, accepted: &Accepted, request_id: String) {
        // A build for failure tests can be made to die here: the variable `FAILPOINTS=committed=return` does it.
        #[cfg(feature = "failpoints")]
        fail::fail_point!("committed", |_| std::process::abort());
        // Kept by a version that took other URLs: only the dispatcher can tell what is wrong with it.
        let Ok(target) = TargetUrl::parse(&accepted.delivery.callback_url) else { return };
        self.publisher.ring(Job {
            version: Job::VERSION,
            delivery_id: accepted.delivery.id,
            attempt: 1,
            destination: Destination::of_origin(&target.origin()),
            org_id: accepted.org_id,
            request_id,
        });
    }
}

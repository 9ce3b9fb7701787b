//! Ringing for what was accepted.

use contracts::{Destination, Job};
use queue::Publisher;
use store::Accepted;

/// Rings for deliveries that have been committed together, each with the request that asked for it. Without a doorbell the
/// relay serves them a little later, so nothing here waits or fails.
pub(crate) fn ring<'a>(publisher: &Publisher, accepted: impl IntoIterator<Item = (&'a Accepted, String)>) {
    let job = |(accepted, request_id): (&Accepted, String)| Job {
        delivery_id: accepted.delivery.id,
        attempt: 1,
        destination: Destination::of(accepted.org_id, &accepted.delivery.callback_url),
        payload_size: Some(accepted.delivery.payload_bytes.len() as u64),
        org_id: accepted.org_id,
        request_id,
    };
    let jobs: Vec<Job> = accepted.into_iter().map(job).collect();
    if jobs.is_empty() {
        return;
    }
    // A build for failure tests can be made to die here: the variable `FAILPOINTS=committed=return` does it.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("committed", |_| std::process::abort());
    publisher.ring_all(jobs);
}

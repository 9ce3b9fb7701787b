//! Rings doorbells for accepted deliveries, and counts these.

use contracts::{Destination, Job};
use ops::Metrics;
use ops::metrics::origin;
use queue::Publisher;
use store::Accepted;

/// Rings for deliveries committed together, each paired with the ID of the request that created it. Never
/// waits or fails: without a doorbell, the relay serves the delivery a little later.
pub(crate) fn ring<'a>(
    publisher: &Publisher,
    metrics: &Metrics,
    accepted: impl IntoIterator<Item = (&'a Accepted, String)>,
) {
    let job = |(accepted, request_id): (&Accepted, String)| {
        metrics.accepted.count([origin(accepted.delivery.is_automatic)]);
        if accepted.superseded {
            metrics.ended.count(["failed".into(), "superseded".into()]);
        }
        Job {
            delivery_id: accepted.delivery.id,
            attempt: 1,
            destination: Destination::of(accepted.org_id, &accepted.delivery.callback_url),
            payload_size: Some(accepted.delivery.payload_bytes.len() as u64),
            org_id: accepted.org_id,
            request_id,
        }
    };
    let jobs: Vec<Job> = accepted.into_iter().map(job).collect();
    if jobs.is_empty() {
        return;
    }
    // Failure tests abort the process here with `FAILPOINTS=committed=return`.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("committed", |_| std::process::abort());
    publisher.ring_all(jobs);
}

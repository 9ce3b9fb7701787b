//! Rings doorbells for accepted deliveries, counts these, and traces those of traced requests.

use contracts::{Destination, Job, RequestContext, Traceparent};
use ops::metrics::origin;
use ops::traces::{Follows, SpanKind};
use ops::{Metrics, Tracer};
use queue::Publisher;
use store::Accepted;

/// Rings for deliveries committed together, each paired with the request that created it. Never
/// waits or fails: without a doorbell, the relay serves the delivery a little later.
pub(crate) fn ring<'a>(
    publisher: &Publisher,
    metrics: &Metrics,
    tracer: &Tracer,
    accepted: impl IntoIterator<Item = (&'a Accepted, RequestContext)>,
) {
    let job = |(accepted, request): (&Accepted, RequestContext)| {
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
            request_id: request.request_id,
            traceparent: request.traceparent.and_then(|request| traced(publisher, tracer, accepted, request)),
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

/// Records the creation of a doorbell, and returns the context for the attempt.
fn traced(
    publisher: &Publisher,
    tracer: &Tracer,
    accepted: &Accepted,
    request: Traceparent,
) -> Option<Traceparent> {
    let mut span = tracer.span("ring doorbell", SpanKind::Producer, Follows::Parent(request));
    span.set("messaging.system", if publisher.queue().is_some() { "rabbitmq" } else { "in_process" });
    span.set_some("messaging.destination.name", publisher.queue().map(str::to_owned));
    span.set("messaging.operation.name", "ring");
    span.set("messaging.operation.type", "create");
    span.set("redial.delivery_id", accepted.delivery.id.to_string());
    span.set("redial.run_id", accepted.delivery.run_id.to_string());
    span.set("redial.org_id", accepted.org_id.to_string());
    span.traceparent()
}

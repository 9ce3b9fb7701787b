//! Metrics of tokio's runtime.

use std::time::Duration;

use tokio::runtime::{Handle, RuntimeMetrics};

use super::{Metric, Registry};

/// Must be called within a tokio runtime.
pub(super) fn register(registry: &Registry) {
    let runtime = Handle::current().metrics();
    let gauge = |name, help, read: fn(&RuntimeMetrics) -> usize| {
        let runtime = runtime.clone();
        registry.gauge(Metric { name, labels: [], help }, move || Some(read(&runtime) as f64));
    };
    gauge("tokio_workers", "Worker threads of the runtime", RuntimeMetrics::num_workers);
    gauge("tokio_alive_tasks", "Tasks that have not ended", RuntimeMetrics::num_alive_tasks);
    gauge(
        "tokio_global_queue_tasks",
        "Tasks in the queue that all workers share",
        RuntimeMetrics::global_queue_depth,
    );
    registry.read_counters(
        Metric {
            name: "tokio_busy_seconds_total",
            labels: [],
            help: "Time in which workers were busy, summed",
        },
        move || {
            let busy = |worker| runtime.worker_total_busy_duration(worker);
            vec![([], (0..runtime.num_workers()).map(busy).sum::<Duration>().as_secs_f64())]
        },
    );
}

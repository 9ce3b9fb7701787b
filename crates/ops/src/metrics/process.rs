//! What the process uses of the machine. The names are the ones that Prometheus' client libraries agree on.

use procfs::process::{LimitValue, Process, Stat};
use procfs::{boot_time_secs, page_size, ticks_per_second};

use super::{Metric, Registry, Value};

pub(super) fn register(registry: &Registry) {
    registry.read_counters(
        Metric {
            name: "process_cpu_seconds_total",
            labels: [],
            help: "CPU time used, in user and in kernel mode",
        },
        || seconds(|stat| (stat.utime + stat.stime) as f64 / ticks_per_second() as f64),
    );
    registry
        .gauge(Metric { name: "process_resident_memory_bytes", labels: [], help: "Resident memory" }, || {
            stat().map(|stat| (stat.rss * page_size()) as f64)
        });
    registry.gauge(
        Metric {
            name: "process_start_time_seconds",
            labels: [],
            help: "Start of the process, in seconds since 1970",
        },
        || Some(boot_time_secs().ok()? as f64 + stat()?.starttime as f64 / ticks_per_second() as f64),
    );
    registry.gauge(Metric { name: "process_open_fds", labels: [], help: "Open file descriptors" }, || {
        Some(Process::myself().ok()?.fd_count().ok()? as f64)
    });
    registry.gauge(
        Metric { name: "process_max_fds", labels: [], help: "Maximum number of open file descriptors" },
        || match Process::myself().ok()?.limits().ok()?.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most as f64),
            LimitValue::Unlimited => None,
        },
    );
}

fn stat() -> Option<Stat> {
    Process::myself().ok()?.stat().ok()
}

fn seconds(of: impl Fn(Stat) -> f64) -> Vec<([Value; 0], f64)> {
    stat().map(|stat| ([], of(stat))).into_iter().collect()
}

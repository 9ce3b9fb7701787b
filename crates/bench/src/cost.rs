//! CPU time of each part and of kernel threads, from `/proc`, whose clock ticks 100 times per second.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use procfs::process::{Process, Stat, all_processes};
use serde::Serialize;

/// A part of the installation, in the order in which a delivery passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Component {
    /// This process: the clients and the receiver.
    Client,
    Api,
    /// All dispatchers. In embedded mode the only process.
    Dispatcher,
    RabbitMq,
    /// All its processes, including those that have ended.
    PostgreSql,
    /// Kernel threads, such as those that write to disk.
    Kernel,
}

/// CPU time of each part since boot, in seconds: total and in the kernel. Also PostgreSQL's position in the
/// write-ahead log and its number of transactions.
pub(crate) struct Usage {
    parts: BTreeMap<Component, (f64, f64)>,
    pub(crate) wal: Option<u64>,
    pub(crate) transactions: Option<u64>,
}

/// Cost per delivery, or the total of an idle period.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cost {
    /// CPU time in microseconds, by part.
    pub(crate) cpu: BTreeMap<Component, Cpu>,
    /// CPU time of all parts except the client, in microseconds.
    pub(crate) total: f64,
    /// Bytes of PostgreSQL's write-ahead log.
    pub(crate) wal: Option<f64>,
    /// Committed PostgreSQL transactions, of any origin.
    pub(crate) transactions: Option<f64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Cpu {
    pub(crate) all: f64,
    /// Component of `all` spent in the kernel.
    pub(crate) kernel: f64,
}

/// Process ids of an installation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes {
    pub(crate) api: BTreeSet<i32>,
    pub(crate) dispatchers: BTreeSet<i32>,
}

impl Processes {
    /// Returns the usage of all parts so far.
    pub(crate) fn usage(&self, wal: Option<u64>, transactions: Option<u64>) -> Result<Usage> {
        let ticks = procfs::ticks_per_second() as f64;
        let mut parts = BTreeMap::from_iter(
            [
                Component::Client,
                Component::Api,
                Component::Dispatcher,
                Component::RabbitMq,
                Component::PostgreSql,
                Component::Kernel,
            ]
            .map(|part| (part, (0.0, 0.0))),
        );
        let own = std::process::id() as i32;
        for process in all_processes().context("/proc can't be read")? {
            // If a process ends meanwhile, its time is counted by its parent.
            let Ok(stat) = process.and_then(|process: Process| process.stat()) else { continue };
            let Some(part) = self.part_of(&stat, own) else { continue };
            let (mut user, mut kernel) = (stat.utime, stat.stime);
            if part == Component::PostgreSql {
                user += u64::try_from(stat.cutime).unwrap_or(0);
                kernel += u64::try_from(stat.cstime).unwrap_or(0);
            }
            let used = parts.entry(part).or_default();
            used.0 += (user + kernel) as f64 / ticks;
            used.1 += kernel as f64 / ticks;
        }
        Ok(Usage { parts, wal, transactions })
    }

    fn part_of(&self, stat: &Stat, own: i32) -> Option<Component> {
        const KTHREADD: i32 = 2;
        Some(match stat.comm.as_str() {
            _ if stat.pid == own => Component::Client,
            _ if self.api.contains(&stat.pid) => Component::Api,
            _ if self.dispatchers.contains(&stat.pid) => Component::Dispatcher,
            "postgres" => Component::PostgreSql,
            "beam.smp" | "erl_child_setup" | "inet_gethost" | "epmd" => Component::RabbitMq,
            _ if stat.ppid == KTHREADD => Component::Kernel,
            _ => return None,
        })
    }
}

impl Cost {
    pub(crate) fn between(before: &Usage, after: &Usage, deliveries: usize) -> Cost {
        let each = |seconds: f64| seconds * 1_000_000.0 / deliveries as f64;
        let cpu: BTreeMap<Component, Cpu> = after
            .parts
            .iter()
            .map(|(part, (all, kernel))| {
                let (all_before, kernel_before) = before.parts.get(part).copied().unwrap_or_default();
                (*part, Cpu { all: each(all - all_before), kernel: each(kernel - kernel_before) })
            })
            .collect();
        let total = cpu.iter().filter(|(part, _)| **part != Component::Client).map(|(_, cpu)| cpu.all).sum();
        let counted = |after: Option<u64>, before: Option<u64>| {
            Some(after?.saturating_sub(before?) as f64 / deliveries as f64)
        };
        Cost {
            cpu,
            total,
            wal: counted(after.wal, before.wal),
            transactions: counted(after.transactions, before.transactions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_per_delivery_is_the_difference_divided_by_deliveries() {
        let usage = |seconds: f64, wal| Usage {
            parts: BTreeMap::from([
                (Component::Client, (seconds, 0.0)),
                (Component::PostgreSql, (2.0 * seconds, seconds)),
            ]),
            wal: Some(wal),
            transactions: None,
        };
        let cost = Cost::between(&usage(1.0, 100), &usage(2.0, 2_100), 1_000);
        assert_eq!(
            (cost.cpu[&Component::Client].all, cost.cpu[&Component::PostgreSql].kernel),
            (1_000.0, 1_000.0)
        );
        assert_eq!((cost.total, cost.wal, cost.transactions), (2_000.0, Some(2.0), None));
    }
}

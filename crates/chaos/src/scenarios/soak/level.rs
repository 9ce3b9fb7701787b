//! Whether what a soak measures stays level.
//!
//! A run is divided into quarters. In the first, processes warm up, and tables grow until what is pruned
//! equals what is added; so memory, open files and sizes of the last quarter are compared with the second:
//! half a run lies between their middles. Compared are medians, which a sample beside a restart or a vacuum
//! does not move. What leaks grows in proportion to the time and exceeds the bound in a run that is long
//! enough; the shares and the slack allow for allocators, and for vacuums that come when they like. The p99
//! of lateness needs no warm-up and is compared with the first quarter.

use super::samples::{Lateness, Measured, Sample};
use crate::report::Row;

/// Upper bound of the last quarter: a multiple of the second one, and a slack for small numbers.
struct Bound {
    multiple: f64,
    slack: f64,
}

const MEMORY: Bound = Bound { multiple: 1.1, slack: 4.0 };
const OPEN_FILES: Bound = Bound { multiple: 1.1, slack: 8.0 };
const SIZE: Bound = Bound { multiple: 1.2, slack: 4.0 };
/// Maximum p99 of the last quarter, as a multiple of the first one's.
const P99: f64 = 1.2;

/// Returns rows about the processes that ran all the time, the sizes, and the lateness.
pub(super) fn rows(measured: &Measured, processes: &[String]) -> Vec<Row> {
    let mut rows = Vec::new();
    for name in processes {
        let memory = |sample: &Sample| Some(sample.processes.get(name)?.memory);
        rows.push(level(&format!("memory of {name}, MiB"), &measured.samples, memory, &MEMORY));
        let files = |sample: &Sample| Some(sample.processes.get(name)?.open_files as f64);
        rows.push(level(&format!("open files of {name}"), &measured.samples, files, &OPEN_FILES));
    }
    rows.push(level("tables, MiB", &measured.samples, |sample| Some(sample.table_mib()), &SIZE));
    rows.push(level("indexes, MiB", &measured.samples, |sample| Some(sample.index_mib()), &SIZE));
    let [first, last] = [0, 3].map(|number| p99(quarter(&measured.lateness, number)));
    let limit = first * P99;
    rows.push(Row::new(
        "acceptance to arrival at good receivers, p99 of the last quarter",
        format!("{limit:.1} ms, {P99} × the first"),
        format!("{last:.1} ms"),
        last <= limit,
    ));
    rows
}

fn level(what: &str, samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>, bound: &Bound) -> Row {
    let of = |number| median(quarter(samples, number).iter().filter_map(&value).collect());
    let (second, last) = (of(1), of(3));
    let limit = second * bound.multiple + bound.slack;
    Row::new(
        format!("{what}: last quarter"),
        format!("{limit:.1}"),
        format!("{last:.1}, second quarter {second:.1}"),
        last <= limit,
    )
}

/// Returns a quarter of the items, by number from 0.
fn quarter<T>(items: &[T], number: usize) -> &[T] {
    let at = |number| items.len() * number / 4;
    &items[at(number)..at(number + 1)]
}

/// Returns the upper median, or NaN if there are no values: then no bound holds.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the p99 of all times in some windows, in milliseconds; NaN if there are none.
fn p99(windows: &[Lateness]) -> f64 {
    let mut all: Vec<u32> = windows.iter().flat_map(|window| window.all.iter().copied()).collect();
    all.sort_unstable();
    all.get(all.len().saturating_sub(1) * 99 / 100).map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::samples::{Size, Usage};
    use super::*;

    /// Samples of one process and one table, whose size in MiB is also the memory.
    fn measured(sizes: impl Fn(usize) -> f64, lateness: impl Fn(usize) -> u32) -> Measured {
        let sample = |n| {
            let bytes = (sizes(n) * 1024.0 * 1024.0) as u64;
            let usage = Usage { memory: sizes(n), open_files: 100 };
            Sample {
                processes: BTreeMap::from([("api-1".to_owned(), usage)]),
                tables: BTreeMap::from([("runs".to_owned(), Size { table: bytes, indexes: bytes })]),
                ..Sample::default()
            }
        };
        let late = |n| Lateness { until: 0.0, p50: 0.0, p99: 0.0, all: vec![lateness(n); 100] };
        Measured { samples: (0..400).map(sample).collect(), lateness: (0..400).map(late).collect() }
    }

    fn verdicts(measured: &Measured) -> Vec<bool> {
        rows(measured, &["api-1".to_owned()]).iter().map(|row| row.is_good).collect()
    }

    #[test]
    fn a_run_that_grows_at_first_and_then_goes_up_and_down_is_level() {
        let size = |n: usize| n.min(100) as f64 + (n % 7) as f64;
        assert_eq!(verdicts(&measured(size, |n| 900 + (n % 100) as u32)), [true; 5]);
    }

    #[test]
    fn steady_growth_is_noticed() {
        let verdicts = verdicts(&measured(|n| 100.0 + n as f64 / 2.0, |n| 1000 + n as u32));
        assert_eq!(verdicts, [false, true, false, false, false]);
    }

    #[test]
    fn a_run_without_measurements_is_not_level() {
        assert!(verdicts(&Measured::default()).iter().all(|is_good| !is_good));
    }
}

//! What a soak measures every ten seconds, and its report as JSON and SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use plot::{Line, Panel};
use serde::Serialize;
use testkit::Cluster;

use crate::installation::Installation;

/// One sample.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sample {
    /// Seconds since the beginning.
    pub(super) at: f64,
    /// By process.
    pub(super) processes: BTreeMap<String, Usage>,
    /// By table.
    pub(super) tables: BTreeMap<String, Size>,
    /// Messages in the queue; `None` if the broker did not answer in time.
    pub(super) waiting: Option<u32>,
    /// Deliveries that were accepted so far, and that were judged so far.
    pub(super) accepted: usize,
    pub(super) judged: usize,
    /// Lost ones among the judged.
    pub(super) lost: usize,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    /// Resident memory, in MiB.
    pub(super) memory: f64,
    pub(super) open_files: usize,
}

/// Bytes of a table and of its indexes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Size {
    pub(super) table: u64,
    pub(super) indexes: u64,
}

/// Times from acceptance to arrival at good receivers, of the deliveries accepted in one window.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lateness {
    /// End of the window, in seconds since the beginning.
    pub(super) until: f64,
    /// In milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// All times in microseconds, for the percentiles of several windows.
    #[serde(skip)]
    pub(super) all: Vec<u32>,
}

/// Everything measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Measured {
    pub(super) samples: Vec<Sample>,
    pub(super) lateness: Vec<Lateness>,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Sample {
    /// Returns memory, open files and sizes. The counts remain to be set.
    pub(super) async fn take(cluster: &Cluster, installation: &Installation, at: f64) -> Result<Sample> {
        let mut processes = BTreeMap::new();
        for process in installation.apis.iter().chain(&installation.dispatchers) {
            let (memory, _) = process.memory()?;
            let usage = Usage { memory, open_files: process.open_files()? };
            processes.insert(process.spec.name.clone(), usage);
        }
        const SIZES: &str = "SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class
             WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
        let text = cluster.sql(&installation.database, SIZES)?;
        let size = |line: &str| {
            let mut words = line.split('|');
            let name = words.next()?.to_owned();
            let size = Size { table: words.next()?.parse().ok()?, indexes: words.next()?.parse().ok()? };
            Some((name, size))
        };
        let tables = text.lines().map(size).collect::<Option<_>>().context("sizes that can't be read")?;
        let waiting = installation.depth().await.ok().map(|depth| depth.waiting);
        Ok(Sample { at, processes, tables, waiting, ..Sample::default() })
    }

    /// Returns the size of all tables, in MiB.
    pub(super) fn table_mib(&self) -> f64 {
        self.tables.values().map(|size| size.table as f64 / MIB).sum()
    }

    /// Returns the size of all indexes, in MiB.
    pub(super) fn index_mib(&self) -> f64 {
        self.tables.values().map(|size| size.indexes as f64 / MIB).sum()
    }
}

impl Measured {
    /// Writes `soak.json` and `soak.svg`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        std::fs::write(directory.join("soak.json"), serde_json::to_string_pretty(self)?)?;
        let names = self.samples.last().map(|sample| sample.processes.keys().cloned().collect::<Vec<_>>());
        let names = names.context("no sample")?;
        let of_processes = |value: fn(&Usage) -> f64| -> Vec<Line> {
            names.iter().map(|name| self.line(name, |sample| sample.processes.get(name).map(value))).collect()
        };
        let late = |label: &str, value: fn(&Lateness) -> f64| Line {
            label: label.to_owned(),
            points: self.lateness.iter().map(|late| (late.until / 60.0, value(late))).collect(),
        };
        let panel = |title: &str, lines| Panel { title: title.to_owned(), lines };
        let panels = [
            panel("memory by minutes, MiB", of_processes(|usage| usage.memory)),
            panel("open files", of_processes(|usage| usage.open_files as f64)),
            panel(
                "tables and indexes, MiB",
                vec![
                    self.line("tables", |sample| Some(sample.table_mib())),
                    self.line("indexes", |sample| Some(sample.index_mib())),
                ],
            ),
            panel(
                "acceptance to arrival at good receivers, ms",
                vec![late("p99", |late| late.p99), late("p50", |late| late.p50)],
            ),
        ];
        plot::lines(&directory.join("soak.svg"), &panels)
    }

    fn line(&self, label: &str, value: impl Fn(&Sample) -> Option<f64>) -> Line {
        let points = self.samples.iter().filter_map(|sample| Some((sample.at / 60.0, value(sample)?)));
        Line { label: label.to_owned(), points: points.collect() }
    }
}

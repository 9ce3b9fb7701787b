//! Which figures of reports are plotted.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indexmap::IndexMap;
use plot::{Bar, Line, Panel, bars};
use serde_json::Value;

use crate::autoscale;

/// Draws a plot of JSON reports.
#[derive(Args)]
pub(crate) struct Draw {
    /// What to plot.
    #[arg(value_enum)]
    plot: Plot,
    /// The SVG file to write.
    out: PathBuf,
    /// Reports as LABEL=FILE (`before=before.json`). Reports with the same label are drawn as their medians.
    #[arg(required = true, value_parser = labelled)]
    reports: Vec<(String, PathBuf)>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Plot {
    /// CPU time per delivery, by part of the installation.
    Cost,
    /// Bytes of write-ahead log per delivery.
    Log,
    /// Deliveries per second.
    Throughput,
    /// Latency from request to arrival by rate, from reports of mode `steady`.
    Latency,
    /// Numbers of dispatchers over time, from a report of `autoscale`.
    Autoscale,
}

fn labelled(text: &str) -> Result<(String, PathBuf), String> {
    let (label, file) = text.split_once('=').ok_or("expected LABEL=FILE")?;
    Ok((label.to_owned(), file.into()))
}

const PARTS: [(&str, &str); 5] = [
    ("postgre_sql", "PostgreSQL"),
    ("dispatcher", "dispatcher"),
    ("api", "api"),
    ("rabbit_mq", "RabbitMQ"),
    ("kernel", "kernel's threads"),
];

pub(crate) fn draw(draw: &Draw) -> Result<()> {
    let read = |(label, file): &(String, PathBuf)| {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
        let report =
            serde_json::from_str(&text).with_context(|| format!("{} is not a report", file.display()))?;
        Ok((label.clone(), report))
    };
    let reports: Vec<(String, Value)> = draw.reports.iter().map(read).collect::<Result<_>>()?;
    match draw.plot {
        Plot::Cost => bars(
            &draw.out,
            "CPU time of a delivery, µs",
            &PARTS.map(|(_, name)| name),
            &of_phases(&reports, |phase| {
                PARTS.iter().map(|(part, _)| number(phase, &format!("/cost/cpu/{part}/all"))).collect()
            })?,
        ),
        Plot::Log => bars(
            &draw.out,
            "write-ahead log of a delivery, bytes",
            &["PostgreSQL"],
            &of_phases(&reports, |phase| Ok(vec![number(phase, "/cost/wal")?]))?,
        ),
        Plot::Throughput => bars(
            &draw.out,
            "deliveries a second",
            &["delivered and recorded"],
            &of_phases(&reports, |phase| Ok(vec![number(phase, "/delivered_per_second")?]))?,
        ),
        Plot::Latency => latency(&draw.out, &reports),
        Plot::Autoscale => autoscaled(&draw.out, &reports),
    }
}

/// Returns a bar for each label, from the last phases of its reports.
fn of_phases(reports: &[(String, Value)], parts: impl Fn(&Value) -> Result<Vec<f64>>) -> Result<Vec<Bar>> {
    let mut runs: IndexMap<&str, Vec<Vec<f64>>> = IndexMap::new();
    for (label, report) in reports {
        let phases = report["phases"].as_array().and_then(|phases| phases.last());
        let parts = parts(phases.with_context(|| format!("{label} has no phase"))?)?;
        runs.entry(label).or_default().push(parts);
    }
    let bar = |(label, runs): (&str, Vec<Vec<f64>>)| {
        let part = |n: usize| median(runs.iter().map(|parts| parts[n]).collect());
        Bar { label: label.to_owned(), parts: (0..runs[0].len()).map(part).collect() }
    };
    Ok(runs.into_iter().map(bar).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn number(value: &Value, pointer: &str) -> Result<f64> {
    value.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("a report has no {pointer}"))
}

fn latency(out: &Path, reports: &[(String, Value)]) -> Result<()> {
    let mut lines = Vec::new();
    for (label, report) in reports {
        let phases = report["phases"].as_array().context("a report has no phases")?;
        for share in ["p50", "p99"] {
            let point = |phase: &Value| {
                Ok((number(phase, "/rate/steady")?, number(phase, &format!("/arrival/{share}"))?))
            };
            let points = phases.iter().map(point).collect::<Result<_>>()?;
            lines.push(Line { label: format!("{label} {share}"), points });
        }
    }
    let count: usize = lines.iter().map(|line| line.points.len()).sum();
    ensure!(count > 0, "no report has phases; reports of mode steady are required");
    plot::lines(out, &[Panel { title: "request to arrival by redeliveries a second, ms".to_owned(), lines }])
}

fn autoscaled(out: &Path, reports: &[(String, Value)]) -> Result<()> {
    /// Work of a burst wants hundreds of dispatchers; the plot is about those there are.
    const SHOWN: f64 = 12.0;
    let mut lines = Vec::new();
    for (_, report) in reports {
        let moments = report.as_array().context("not a report of autoscale")?;
        let (mut replicas, mut wanted) = (Vec::new(), Vec::new());
        for moment in moments {
            let minutes = number(moment, "/seconds")? / 60.0;
            replicas.push((minutes, number(moment, "/replicas")?));
            if let Some(work) = moment["work"].as_f64() {
                wanted.push((minutes, autoscale::wanted(work).min(SHOWN)));
            }
        }
        lines.push(Line { label: "dispatchers".to_owned(), points: replicas });
        lines.push(Line { label: "wanted by the work, at most 12 shown".to_owned(), points: wanted });
    }
    plot::lines(out, &[Panel { title: "dispatchers by minutes".to_owned(), lines }])
}

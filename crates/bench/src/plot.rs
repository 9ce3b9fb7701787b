//! Plots of reports, as SVG.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use indexmap::IndexMap;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;
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

/// A bar of stacked parts.
struct Bar {
    label: String,
    parts: Vec<f64>,
}

const SIZE: (u32, u32) = (760, 360);
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

fn bars(out: &Path, title: &str, parts: &[&str], bars: &[Bar]) -> Result<()> {
    let highest = bars.iter().map(|bar| bar.parts.iter().sum::<f64>()).fold(0.0, f64::max);
    let root = SVGBackend::new(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d((0..bars.len()).into_segmented(), 0.0..highest * 1.2)?;
    let label = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) => bars.get(*place).map_or(String::new(), |bar| bar.label.clone()),
        _ => String::new(),
    };
    chart.configure_mesh().disable_x_mesh().x_label_formatter(&label).draw()?;
    for (n, name) in parts.iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        let part = |(place, bar): (usize, &Bar)| {
            let below: f64 = bar.parts[..n].iter().sum();
            let corners =
                [(SegmentValue::Exact(place), below), (SegmentValue::Exact(place + 1), below + bar.parts[n])];
            let mut part = Rectangle::new(corners, color.filled());
            part.set_margin(0, 0, 24, 24);
            part
        };
        let drawn = chart.draw_series(bars.iter().enumerate().map(part))?;
        if parts.len() > 1 {
            drawn
                .label(*name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
        }
    }
    let total = |(place, bar): (usize, &Bar)| {
        let total: f64 = bar.parts.iter().sum();
        let at = (SegmentValue::CenterOf(place), total + highest * 0.06);
        Text::new(format!("{total:.0}"), at, ("sans-serif", 14).into_font())
    };
    chart.draw_series(bars.iter().enumerate().map(total))?;
    if parts.len() > 1 {
        let labels = &mut chart.configure_series_labels();
        labels
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
    }
    Ok(root.present()?)
}

fn latency(out: &Path, reports: &[(String, Value)]) -> Result<()> {
    let mut lines = Vec::new();
    for (label, report) in reports {
        let phases = report["phases"].as_array().context("a report has no phases")?;
        for share in ["p50", "p99"] {
            let point = |phase: &Value| {
                Ok((number(phase, "/rate/steady")?, number(phase, &format!("/arrival/{share}"))?))
            };
            let points: Vec<_> = phases.iter().map(point).collect::<Result<_>>()?;
            lines.push(Line::new(format!("{label} {share}"), points));
        }
    }
    ensure!(
        lines.iter().any(|line| !line.points.is_empty()),
        "no report has phases; reports of mode steady are required"
    );
    self::lines(out, "request to arrival by redeliveries a second, ms", lines)
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
        lines.push(Line::new("dispatchers", replicas));
        lines.push(Line::new("wanted by the work, at most 12 shown", wanted));
    }
    self::lines(out, "dispatchers by minutes", lines)
}

/// A line of a plot.
pub(crate) struct Line {
    label: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(crate) fn new(label: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Line {
        Line { label: label.into(), points: points.into_iter().collect() }
    }
}

/// Draws lines from the origin.
pub(crate) fn lines(out: &Path, title: &str, lines: Vec<Line>) -> Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let furthest = points().map(|(x, _)| *x).fold(0.0, f64::max);
    let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
    let root = SVGBackend::new(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..furthest * 1.05, 0.0..highest * 1.2)?;
    chart.configure_mesh().draw()?;
    for (n, Line { label, points }) in lines.into_iter().enumerate() {
        let color = Palette99::pick(n).to_rgba();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color));
    }
    let labels = &mut chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft).background_style(WHITE).border_style(BLACK).draw()?;
    Ok(root.present()?)
}

//! Bars and lines as SVG files. For developers' programs only.

use std::path::Path;

use anyhow::Result;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

/// Width and height of a plot, in pixels; several panels are stacked.
const SIZE: (u32, u32) = (760, 360);

/// Longer lines are drawn without a dot for each point.
const MOST_DOTS: usize = 50;

/// A bar of stacked parts.
#[allow(missing_docs)]
pub struct Bar {
    pub label: String,
    pub parts: Vec<f64>,
}

/// Points connected by a line.
#[allow(missing_docs)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

/// Lines that share their axes, which begin at zero.
#[allow(missing_docs)]
pub struct Panel {
    pub title: String,
    pub lines: Vec<Line>,
}

/// Draws `bars`, whose parts have the names `parts`.
pub fn bars(out: &Path, title: &str, parts: &[&str], bars: &[Bar]) -> Result<()> {
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

/// Draws panels, one below the other.
pub fn lines(out: &Path, panels: &[Panel]) -> Result<()> {
    let (width, height) = SIZE;
    let root = SVGBackend::new(out, (width, height * panels.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let points = || panel.lines.iter().flat_map(|line| &line.points);
        let furthest = points().map(|(x, _)| *x).fold(0.0, f64::max);
        let highest = points().map(|(_, y)| *y).fold(0.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(&panel.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(56)
            // With room for the labels above the lines.
            .build_cartesian_2d(0.0..furthest * 1.05, 0.0..highest * 1.4)?;
        chart.configure_mesh().draw()?;
        for (n, Line { label, points }) in panel.lines.iter().enumerate() {
            let color = Palette99::pick(n).to_rgba();
            let dots = if points.len() > MOST_DOTS { 0 } else { 3 };
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(dots))?
                .label(label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color));
        }
        let labels = &mut chart.configure_series_labels();
        labels.position(SeriesLabelPosition::UpperLeft).background_style(WHITE).border_style(BLACK).draw()?;
    }
    Ok(root.present()?)
}

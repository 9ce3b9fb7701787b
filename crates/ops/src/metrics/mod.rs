//! Metrics of a process, in the Prometheus text format.
//!
//! [`Metrics`] is the catalog: all metrics, with their labels and meaning, from which `docs/metrics.md` is made.
//! This file has what they are made of. Label values are few and never chosen by clients: no host, organization,
//! run or URL.

mod catalog;
#[cfg(target_os = "linux")]
mod process;
mod runtime;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry;

pub use catalog::{Metrics, origin};

/// The media type of OpenMetrics, which includes exemplars.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A value of a label.
pub type Value = Cow<'static, str>;
type LabelSet<const N: usize> = [(&'static str, Value); N];
/// The delivery that an observation belongs to.
type ExemplarLabels = [(&'static str, String); 1];

/// A metric: its name, what its labels are called, and what it means.
#[derive(Clone, Copy, Debug)]
pub struct Metric<const N: usize> {
    /// Name, with its unit and, for a counter, `_total`.
    pub name: &'static str,
    /// Names of its labels.
    pub labels: [&'static str; N],
    /// A sentence without its full stop.
    pub help: &'static str,
}

/// What `docs/metrics.md` says of a metric.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Description {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: Vec<&'static str>,
    pub help: &'static str,
}

/// The metrics of a process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Registered>>);

#[derive(Default)]
struct Registered {
    registry: registry::Registry,
    descriptions: Vec<Description>,
}

impl Registry {
    /// Registers a counter.
    pub fn counters<const N: usize>(&self, metric: Metric<N>) -> Counters<N> {
        let counters = Counters { names: metric.labels, family: Family::default() };
        self.describe("counter", metric, |registry, name| {
            registry.register(name, metric.help, counters.family.clone());
        });
        counters
    }

    /// Registers a histogram with these upper bounds.
    pub fn histograms<const N: usize>(&self, metric: Metric<N>, bounds: &'static [f64]) -> Histograms<N> {
        let family = Family::new_with_constructor(Buckets(bounds));
        let histograms = Histograms { names: metric.labels, family };
        self.describe("histogram", metric, |registry, name| {
            registry.register(name, metric.help, histograms.family.clone());
        });
        histograms
    }

    /// Registers a gauge that is set.
    pub fn set_gauges<const N: usize>(&self, metric: Metric<N>) -> Gauges<N> {
        let gauges = Gauges { names: metric.labels, family: Family::default() };
        self.describe("gauge", metric, |registry, name| {
            registry.register(name, metric.help, gauges.family.clone());
        });
        gauges
    }

    /// Registers a gauge that is read at each scrape. `read` must not block; each item is the values of the labels
    /// and the gauge. No item: the gauge is absent.
    pub fn gauges<const N: usize>(
        &self,
        metric: Metric<N>,
        read: impl Fn() -> Vec<([Value; N], f64)> + Send + Sync + 'static,
    ) {
        self.describe("gauge", metric, |registry, _| {
            registry.register_collector(Box::new(Read { metric, is_counter: false, read }));
        });
    }

    /// Registers a gauge without labels that is read at each scrape, and absent while it is `None`.
    pub fn gauge(&self, metric: Metric<0>, read: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        self.gauges(metric, move || read().map(|value| ([], value)).into_iter().collect());
    }

    /// Registers a counter that is kept elsewhere and read at each scrape.
    pub fn read_counters<const N: usize>(
        &self,
        metric: Metric<N>,
        read: impl Fn() -> Vec<([Value; N], f64)> + Send + Sync + 'static,
    ) {
        self.describe("counter", metric, |registry, _| {
            registry.register_collector(Box::new(Read { metric, is_counter: true, read }));
        });
    }

    fn describe<const N: usize>(
        &self,
        kind: &'static str,
        metric: Metric<N>,
        register: impl FnOnce(&mut registry::Registry, &'static str),
    ) {
        let mut registered = self.0.lock();
        register(&mut registered.registry, base_name(metric.name));
        registered.descriptions.push(Description {
            name: metric.name,
            kind,
            labels: metric.labels.to_vec(),
            help: metric.help,
        });
    }

    /// Describes all registered metrics, in the order of registration.
    pub fn descriptions(&self) -> Vec<Description> {
        self.0.lock().descriptions.clone()
    }

    /// Returns all metrics and their content type: OpenMetrics, with exemplars, if `accept` (the request's `Accept`)
    /// names it; otherwise the Prometheus text format 0.0.4.
    pub fn scrape(&self, accept: Option<&str>) -> Result<(String, &'static str), fmt::Error> {
        let registered = self.0.lock();
        let mut out = String::new();
        if accept.is_some_and(|accept| accept.contains(OPEN_METRICS)) {
            text::encode(&mut out, &registered.registry)?;
            return Ok((out, OPEN_METRICS_TYPE));
        }
        prometheus_text::encode(&mut out, &registered.registry)?;
        Ok((out, prometheus_text::CONTENT_TYPE))
    }
}

/// The encoder adds `_total` itself.
fn base_name(name: &'static str) -> &'static str {
    name.strip_suffix("_total").unwrap_or(name)
}

/// A counter, or several told apart by labels. Cheap to clone.
#[derive(Clone)]
pub struct Counters<const N: usize> {
    names: [&'static str; N],
    family: Family<LabelSet<N>, Counter>,
}

impl<const N: usize> Counters<N> {
    /// Adds one.
    pub fn count(&self, values: [Value; N]) {
        self.add(values, 1);
    }

    /// Adds `number`; 0 makes the series appear.
    pub fn add(&self, values: [Value; N], number: u64) {
        self.family.get_or_create(&labelled(self.names, values)).inc_by(number);
    }
}

/// A gauge that is set, or several told apart by labels. Cheap to clone.
#[derive(Clone)]
pub struct Gauges<const N: usize> {
    names: [&'static str; N],
    family: Family<LabelSet<N>, Gauge<f64, AtomicU64>>,
}

impl<const N: usize> Gauges<N> {
    /// Sets the gauge.
    pub fn set(&self, values: [Value; N], value: f64) {
        self.family.get_or_create(&labelled(self.names, values)).set(value);
    }

    /// Returns the value of the gauge with these labels, unless it is absent.
    pub fn value(&self, values: [Value; N]) -> Option<f64> {
        self.family.get(&labelled(self.names, values)).map(|gauge| gauge.get())
    }

    /// Makes the gauge absent until it is set again.
    pub fn clear(&self) {
        self.family.clear();
    }
}

/// A histogram, or several told apart by labels. Cheap to clone.
#[derive(Clone)]
pub struct Histograms<const N: usize> {
    names: [&'static str; N],
    family: Family<LabelSet<N>, HistogramWithExemplars<ExemplarLabels>, Buckets>,
}

impl<const N: usize> Histograms<N> {
    /// Observes a value.
    pub fn observe(&self, values: [Value; N], observed: f64) {
        self.family.get_or_create(&labelled(self.names, values)).observe(observed, None, None);
    }

    /// Observes a duration, in seconds.
    pub fn observe_duration(&self, values: [Value; N], observed: Duration) {
        self.observe(values, observed.as_secs_f64());
    }

    /// Observes a value of a delivery, whose id OpenMetrics shows as an exemplar.
    pub fn observe_of(&self, values: [Value; N], observed: f64, delivery_id: String) {
        let exemplar = Some([("delivery_id", delivery_id)]);
        self.family.get_or_create(&labelled(self.names, values)).observe(observed, exemplar, None);
    }

    /// Whether this label set has been observed.
    pub fn has(&self, values: [Value; N]) -> bool {
        self.family.get(&labelled(self.names, values)).is_some()
    }
}

fn labelled<const N: usize>(names: [&'static str; N], values: [Value; N]) -> LabelSet<N> {
    let mut values = values.into_iter();
    names.map(|name| (name, values.next().unwrap_or_default()))
}

/// Makes histograms with these upper bounds.
#[derive(Clone, Copy)]
struct Buckets(&'static [f64]);

impl MetricConstructor<HistogramWithExemplars<ExemplarLabels>> for Buckets {
    fn new_metric(&self) -> HistogramWithExemplars<ExemplarLabels> {
        HistogramWithExemplars::new(self.0.iter().copied())
    }
}

/// A metric that is read at each scrape.
struct Read<const N: usize, F> {
    metric: Metric<N>,
    is_counter: bool,
    read: F,
}

impl<const N: usize, F> fmt::Debug for Read<N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.metric.name)
    }
}

impl<const N: usize, F> Collector for Read<N, F>
where
    F: Fn() -> Vec<([Value; N], f64)> + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let read = (self.read)();
        if read.is_empty() {
            return Ok(());
        }
        let kind = if self.is_counter {
            ConstCounter::new(0.0).metric_type()
        } else {
            ConstGauge::new(0.0).metric_type()
        };
        let mut family =
            encoder.encode_descriptor(base_name(self.metric.name), self.metric.help, None, kind)?;
        for (values, value) in read {
            let labels = labelled(self.metric.labels, values);
            let encoder = family.encode_family(&labels)?;
            match self.is_counter {
                true => ConstCounter::new(value).encode(encoder)?,
                false => ConstGauge::new(value).encode(encoder)?,
            }
        }
        Ok(())
    }
}

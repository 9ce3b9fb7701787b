//! Traces: the spans of requests, doorbells and attempts, by OpenTelemetry's semantic conventions.
//!
//! A delivery belongs to the trace of the request that created it: its doorbell and its first attempt
//! continue that trace. A later attempt, perhaps hours later, begins a trace of its own with a link to it.
//! Whether spans are recorded is decided once per delivery, with the request.

use std::borrow::Cow;

use contracts::Traceparent;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

pub use opentelemetry::trace::SpanKind;

/// Begins spans, or passes contexts on unchanged if tracing is off. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Recording>);

#[derive(Clone, Debug)]
struct Recording {
    tracer: SdkTracer,
    /// The share of the traces that begin here to record, from 0 to 1.
    ratio: f64,
}

/// What a span continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Nothing: it begins a trace.
    Nothing,
    /// It continues a trace.
    Parent(Traceparent),
    /// It begins a trace that is linked to another one, and is recorded if that one is.
    Link(Traceparent),
}

/// A span, recorded or not. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span {
    recorded: Option<opentelemetry_sdk::trace::Span>,
    context: Option<Traceparent>,
}

impl Tracer {
    /// Returns a tracer that records with `tracer`, which must sample every span: those of traces that a
    /// caller has sampled, and `ratio` (from 0 to 1) of the traces that begin here.
    pub fn new(tracer: SdkTracer, ratio: f64) -> Tracer {
        Tracer(Some(Recording { tracer, ratio }))
    }

    /// Begins a span.
    pub fn span(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, follows: Follows) -> Span {
        let (parent, link) = match follows {
            Follows::Nothing => (None, None),
            Follows::Parent(parent) => (Some(parent), None),
            Follows::Link(link) => (None, Some(link)),
        };
        let followed = parent.or(link);
        let is_wanted = |recording: &&Recording| match followed {
            Some(followed) => followed.is_sampled,
            None => fastrand::f64() < recording.ratio,
        };
        let Some(Recording { tracer, .. }) = self.0.as_ref().filter(is_wanted) else {
            return Span { recorded: None, context: followed };
        };
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        if let Some(link) = link {
            builder = builder.with_links(vec![Link::with_context(span_context(link))]);
        }
        let around = match parent {
            Some(parent) => Context::new().with_remote_span_context(span_context(parent)),
            None => Context::new(),
        };
        let recorded = tracer.build_with_context(builder, &around);
        // After a shutdown, the SDK begins no more spans.
        let context = traceparent(recorded.span_context()).or(followed);
        Span { recorded: Some(recorded), context }
    }
}

impl Span {
    /// Returns the context to pass on to what this span causes, if there is a trace.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.context
    }

    /// Returns the trace's ID as in logs: 32 hexadecimal digits.
    pub fn trace_id(&self) -> Option<String> {
        self.context.map(|context| format!("{:032x}", context.trace_id))
    }

    /// Whether attributes are recorded.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// Names the span anew.
    pub fn rename(&mut self, name: String) {
        if let Some(span) = &mut self.recorded {
            span.update_name(name);
        }
    }

    /// Sets an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.recorded {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Sets an attribute that may be absent.
    pub fn set_some(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Marks the span as failed; `reason` becomes `error.type`.
    pub fn fail(&mut self, reason: impl Into<Value>) {
        self.set("error.type", reason);
        if let Some(span) = &mut self.recorded {
            span.set_status(Status::error(""));
        }
    }
}

fn span_context(traceparent: Traceparent) -> SpanContext {
    let Traceparent { trace_id, parent_id, is_sampled } = traceparent;
    let flags = TraceFlags::default().with_sampled(is_sampled);
    SpanContext::new(TraceId::from(trace_id), SpanId::from(parent_id), flags, true, TraceState::NONE)
}

fn traceparent(context: &SpanContext) -> Option<Traceparent> {
    context.is_valid().then(|| Traceparent {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
        parent_id: u64::from_be_bytes(context.span_id().to_bytes()),
        is_sampled: context.is_sampled(),
    })
}

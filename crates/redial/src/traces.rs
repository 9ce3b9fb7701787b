//! The exporter of traces: OTLP over HTTP, off unless the environment names an endpoint.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use ops::Tracer;

use crate::settings::{Settings, SettingsError};

/// Timeout for exporting the last spans at exit.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// The tracer of a process, and what exports its spans.
#[derive(Default)]
pub(crate) struct Traces {
    pub(crate) tracer: Tracer,
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Starts the exporter of the process named `service`, by OpenTelemetry's standard variables. Without an
    /// endpoint among them, tracing is off.
    pub(crate) fn start(service: &'static str, settings: &Settings) -> Result<Traces, SettingsError> {
        let is_set = |name: &&str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let endpoints = [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT];
        let Some(key) = endpoints.iter().find(|name| is_set(name)) else { return Ok(Traces::default()) };
        if std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Traces::default());
        }
        // Fails if it is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder().with_http().build();
        let exporter = exporter.map_err(|error| SettingsError::value(key, error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            // `ops::Tracer` decides.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource(service))
            .with_batch_exporter(exporter)
            .build();
        let ratio = settings.traces.sample_ratio;
        tracing::info!(endpoint = key, sample_ratio = ratio, "exporting traces");
        Ok(Traces { tracer: Tracer::new(provider.tracer("redial"), ratio), provider: Some(provider) })
    }

    /// Exports what has ended, for at most two seconds.
    pub(crate) async fn stop(self) {
        let Some(provider) = self.provider else { return };
        let stopping = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_WAIT));
        if let Ok(Err(error)) = stopping.await {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Describes this process. The variables `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` come first.
fn resource(service: &'static str) -> Resource {
    let given = Resource::builder().build();
    let name = given.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version);
    if is_named { resource.build() } else { resource.with_service_name(service).build() }
}

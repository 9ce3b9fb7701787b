//! All metrics of Redial.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Counters, Gauges, Histograms, Metric, Registry, Value, runtime};
use crate::Readiness;

/// Upper bounds of durations of requests in seconds: those of OpenTelemetry's HTTP metrics.
pub(super) const REQUEST_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const ATTEMPT_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const LATENESS_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
/// Up to a day: a delivery with all its retries.
const DELIVERY_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];
const STORE_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Maximum number of series of requests, so that a client that tries everything can't fill the monitoring system. What
/// exceeds it is counted under the route `other`.
pub(super) const REQUEST_LABEL_SETS: usize = 20;

/// The metrics of a process: a handle for each one that is counted, observed or set, and a function for each one that is
/// read at a scrape. Cheap to clone.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct Metrics {
    pub registry: Registry,
    requests: Histograms<3>,
    /// Number of label sets of `requests`.
    routes: Arc<AtomicUsize>,
    pub accepted: Counters<1>,
    pub accept_batches: Histograms<0>,
    pub claim_batches: Histograms<1>,
    pub attempts: Counters<3>,
    pub attempt_seconds: Histograms<1>,
    pub lateness_seconds: Histograms<1>,
    pub delivery_seconds: Histograms<2>,
    pub ended: Counters<2>,
    pub in_flight: Gauges<0>,
    pub in_flight_limit: Gauges<0>,
    pub leases_expired: Counters<0>,
    pub late_results: Counters<0>,
    pub due: Gauges<0>,
    pub oldest_due_age: Gauges<0>,
    pub work: Gauges<0>,
    pub destinations: Gauges<1>,
    store_seconds: Histograms<1>,
    store_errors: Counters<2>,
}

impl Metrics {
    /// Returns metrics with nothing counted, for the running `version`.
    ///
    /// Must be called within a tokio runtime.
    pub fn new(version: &'static str) -> Metrics {
        let registry = Registry::default();
        registry.gauges(
            Metric {
                name: "redial_build_info",
                labels: ["version"],
                help: "Always 1; the label is the running version",
            },
            move || vec![([version.into()], 1.0)],
        );
        let metrics = Metrics {
            requests: registry.histograms(
                Metric {
                    name: "http_server_request_duration_seconds",
                    labels: ["http_route", "http_request_method", "http_response_status_code"],
                    help: "Time from a request's head to its response's head, by the pattern of the route",
                },
                REQUEST_SECONDS,
            ),
            routes: Arc::default(),
            accepted: registry.counters(Metric {
                name: "redial_deliveries_accepted_total",
                labels: ["origin"],
                help: "Deliveries accepted: at a run's end (automatic) or on request (redelivery)",
            }),
            accept_batches: registry.histograms(
                Metric {
                    name: "redial_accept_batch_size",
                    labels: [],
                    help: "Redelivery requests that share a transaction",
                },
                BATCH_SIZES,
            ),
            claim_batches: registry.histograms(
                Metric {
                    name: "redial_claim_batch_size",
                    labels: ["source"],
                    help: "Attempts claimed in a transaction, from doorbells or by the relay; polls that find nothing are not \
                           observed",
                },
                BATCH_SIZES,
            ),
            attempts: registry.counters(Metric {
                name: "redial_attempts_total",
                labels: ["outcome", "reason", "status_class"],
                help: "Attempts when their result was first recorded: succeeded, retry or failed; and attempts handed back, not_sent",
            }),
            attempt_seconds: registry.histograms(
                Metric {
                    name: "redial_attempt_duration_seconds",
                    labels: ["outcome"],
                    help: "Time from sending to the response's head or the failure; the exemplar is the delivery",
                },
                ATTEMPT_SECONDS,
            ),
            lateness_seconds: registry.histograms(
                Metric {
                    name: "redial_attempt_lateness_seconds",
                    labels: ["kind"],
                    help: "Time from when an attempt was due to its claim: first, from acceptance; retry, from next_attempt_at",
                },
                LATENESS_SECONDS,
            ),
            delivery_seconds: registry.histograms(
                Metric {
                    name: "redial_delivery_duration_seconds",
                    labels: ["origin", "outcome"],
                    help: "Time from acceptance to the end of a delivery that an attempt ended",
                },
                DELIVERY_SECONDS,
            ),
            ended: registry.counters(Metric {
                name: "redial_deliveries_ended_total",
                labels: ["outcome", "reason"],
                help: "Deliveries that ended: by an attempt, superseded or withdrawn",
            }),
            in_flight: registry.set_gauges(Metric {
                name: "redial_in_flight_attempts",
                labels: [],
                help: "Attempts in flight in this dispatcher, including those whose result is not recorded yet",
            }),
            in_flight_limit: registry.set_gauges(Metric {
                name: "redial_in_flight_attempts_limit",
                labels: [],
                help: "Maximum attempts in flight, dispatcher.max_in_flight",
            }),
            leases_expired: registry.counters(Metric {
                name: "redial_leases_expired_total",
                labels: [],
                help: "Attempts recorded as outcome_unknown because their lease ended, of whichever dispatcher",
            }),
            late_results: registry.counters(Metric {
                name: "redial_late_results_total",
                labels: [],
                help: "Results that arrived after their lease had ended",
            }),
            due: registry.set_gauges(Metric {
                name: "redial_due_deliveries",
                labels: [],
                help: "Deliveries that are due and not claimed, of the whole installation, without held destinations; counted \
                       up to 10,000. Sampled every 5 s: aggregate with max",
            }),
            oldest_due_age: registry.set_gauges(Metric {
                name: "redial_oldest_due_age_seconds",
                labels: [],
                help: "How long the oldest of these has been due, 0 if there is none; absent while the database can't be \
                       asked. Aggregate with max",
            }),
            work: registry.set_gauges(Metric {
                name: "redial_work_deliveries",
                labels: [],
                help: "Deliveries that are due or in flight in the whole installation, each counted up to 10,000: the work by \
                       which the number of dispatchers is chosen, also answered by GET /scaling. Aggregate with max",
            }),
            destinations: registry.set_gauges(Metric {
                name: "redial_destinations",
                labels: ["state"],
                help: "Destinations that this dispatcher knows as ordinary or slowed (failures have lowered their limit), and those of the whole installation that are held. Aggregate with max",
            }),
            store_seconds: registry.histograms(
                Metric {
                    name: "redial_store_duration_seconds",
                    labels: ["step"],
                    help: "Time of a transaction, with the wait for a connection: accept, claim, record, recover, sample",
                },
                STORE_SECONDS,
            ),
            store_errors: registry.counters(Metric {
                name: "redial_store_errors_total",
                labels: ["step", "kind"],
                help: "Transactions that failed: busy (no free connection), unavailable, or refused",
            }),
            registry,
        };
        metrics.leases_expired.add([], 0);
        metrics.late_results.add([], 0);
        #[cfg(target_os = "linux")]
        super::process::register(&metrics.registry);
        runtime::register(&metrics.registry);
        metrics
    }

    /// Counts a request to the API. `route` is the pattern, or `none`.
    pub fn request(&self, route: &str, method: &str, status: u16, took: Duration) {
        let labels = |route: &str, method: &str| -> [Value; 3] {
            [route.to_owned().into(), method.to_owned().into(), status.to_string().into()]
        };
        let values = labels(route, method);
        let is_new = !self.requests.has(values.clone());
        if is_new && self.routes.fetch_add(1, Ordering::Relaxed) >= REQUEST_LABEL_SETS {
            self.routes.fetch_sub(1, Ordering::Relaxed);
            self.requests.observe_duration(labels("other", "_OTHER"), took);
        } else {
            self.requests.observe_duration(values, took);
        }
    }

    /// Observes a transaction. `error` is the kind of its failure: `busy`, `unavailable` or `refused`.
    pub fn transaction(&self, step: &'static str, began: Instant, error: Option<&'static str>) {
        self.store_seconds.observe_duration([step.into()], began.elapsed());
        if let Some(kind) = error {
            self.store_errors.count([step.into(), kind.into()]);
        }
    }

    /// Shows what became of doorbells: the numbers of confirmed, dropped and refused ones.
    pub fn doorbells(&self, read: impl Fn() -> [u64; 3] + Send + Sync + 'static) {
        self.registry.read_counters(
            Metric {
                name: "redial_doorbells_total",
                labels: ["result"],
                help: "Doorbells of accepted deliveries: confirmed by the broker, dropped unsent, or refused (not confirmed); the \
                       relay serves the last two",
            },
            move || {
                let results = ["confirmed", "dropped", "refused"].into_iter().zip(read());
                results.map(|(result, number)| ([result.into()], number as f64)).collect()
            },
        );
    }

    /// Shows the number of parked messages.
    pub fn parked(&self, read: impl Fn() -> u32 + Send + Sync + 'static) {
        self.registry.gauge(
            Metric {
                name: "redial_parked_messages",
                labels: [],
                help: "Messages in the broker's parked queue, as a dispatcher last saw it. Aggregate with max",
            },
            move || Some(read().into()),
        );
    }

    /// Shows whether the broker is connected, for each role: `publisher`, `consumer`.
    pub fn broker_connected(&self, read: impl Fn() -> Vec<(&'static str, bool)> + Send + Sync + 'static) {
        self.registry.gauges(
            Metric {
                name: "redial_broker_connected",
                labels: ["role"],
                help: "Whether the connection to the broker works (1) or not (0): publisher, consumer",
            },
            move || read().into_iter().map(|(role, is)| ([role.into()], f64::from(u8::from(is)))).collect(),
        );
    }

    /// Shows since when a dispatcher has had results that it can't record.
    pub fn unwritten_since(&self, read: impl Fn() -> Option<Instant> + Send + Sync + 'static) {
        self.registry.gauge(
            Metric {
                name: "redial_oldest_unwritten_result_age_seconds",
                labels: [],
                help: "How long the oldest result has waited since the database first did not record it; 0 if there is none",
            },
            move || Some(seconds_since(read())),
        );
    }

    /// Shows each readiness check.
    pub fn readiness(&self, readiness: Readiness) {
        self.registry.gauges(
            Metric {
                name: "redial_ready",
                labels: ["check"],
                help: "Whether a check of GET /health/ready passes (1) or not (0)",
            },
            move || {
                let passes = |(check, is): (&'static str, bool)| ([check.into()], f64::from(u8::from(is)));
                readiness.checks().map(passes).collect()
            },
        );
    }

    /// Shows the database's clock minus this host's, and the connections of the pool: in use, idle, and their maximum.
    pub fn database(
        &self,
        clock_offset: impl Fn() -> f64 + Send + Sync + 'static,
        pool: impl Fn() -> [u32; 3] + Send + Sync + 'static,
    ) {
        self.registry.gauge(
            Metric {
                name: "redial_clock_offset_seconds",
                labels: [],
                help: "The database's clock minus this host's; Redial follows the database's",
            },
            move || Some(clock_offset()),
        );
        self.registry.gauges(
            Metric {
                name: "redial_store_connections",
                labels: ["state"],
                help: "Connections to the database: used, idle, and their maximum (max)",
            },
            move || {
                let states = ["used", "idle", "max"].into_iter().zip(pool());
                states.map(|(state, number)| ([state.into()], f64::from(number))).collect()
            },
        );
    }
}

/// Returns the value of the label `origin`.
pub fn origin(is_automatic: bool) -> Value {
    if is_automatic { "automatic".into() } else { "redelivery".into() }
}

/// Returns the seconds since `then`, or 0.
fn seconds_since(then: Option<Instant>) -> f64 {
    then.map_or(0.0, |then| then.elapsed().as_secs_f64())
}

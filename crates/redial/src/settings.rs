//! Configuration: the defaults of `settings/defaults.toml`, overridden by `redial.toml`, overridden by the
//! environment.
//!
//! All values are validated on load, except those that only some commands need: [`Settings::database_url`],
//! [`Settings::broker`], [`Settings::keyring`]. Every error names the key.

mod apply;
mod error;
mod listen;
mod masked;
#[cfg(test)]
mod reference;
mod size;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use contracts::{AttemptNumber, PayloadFormat};
use egress::{Nat64Prefix, PortRange};
use ipnet::IpNet;
use ops::LogFormat;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

pub(crate) use self::error::SettingsError;
pub(crate) use self::listen::ListenAddress;
use self::size::Size;
use self::source::{Source, Variables};

/// The default configuration file, in the working directory; optional.
pub(crate) const FILE: &str = "redial.toml";
/// Shorter than any HTTP exchange.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longer than any practical value, and far below where sums of timestamps overflow.
const LONGEST: Duration = Duration::from_secs(28 * 24 * 3600);
/// More slots would need more sockets than systems allow.
const MOST_IN_FLIGHT: u16 = 10_000;
/// More than any process needs.
const MOST_IN_FLIGHT_BYTES: Size = Size(64 << 30);
/// Each attempt is a row, and a delivery's API response lists them all.
const MOST_ATTEMPTS: AttemptNumber = 100;
/// Time that an attempt needs in addition to its request: to be claimed, signed and recorded.
const MARGIN: Duration = Duration::from_secs(1);
/// A body is held in memory, in several copies while it becomes a payload.
const LARGEST_BODY: Size = Size(64 << 20);
/// The API's memory for large responses holds two of these.
const LARGEST_PAGE: Size = Size(16 << 20);
/// A dispatcher claims, records, retries refused records and recovers leases, each on its own connection.
const FEWEST_CONNECTIONS: u32 = 4;
/// Longer than any practical value, and far below the largest timestamp.
const LONGEST_RETENTION: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
/// Far longer than the check interval of any load balancer.
const LONGEST_DRAIN: Duration = Duration::from_secs(60);
/// More than one process can serve, and far below where the token bucket's sums overflow.
const HIGHEST_RATE: u32 = 1_000_000;
const MINUTE: Duration = Duration::from_secs(60);

/// The effective configuration. Serializes with secrets masked.
#[derive(Clone, Serialize)]
pub(crate) struct Settings {
    pub(crate) database: DatabaseSettings,
    pub(crate) broker: BrokerSettings,
    pub(crate) api: ApiSettings,
    pub(crate) dispatcher: DispatcherSettings,
    pub(crate) delivery: DeliverySettings,
    pub(crate) egress: EgressSettings,
    pub(crate) secrets: SecretsSettings,
    retention: RetentionSettings,
    pub(crate) metrics: MetricsSettings,
    pub(crate) traces: TracesSettings,
    pub(crate) log: LogSettings,
}

#[derive(Clone, Serialize)]
pub(crate) struct DatabaseSettings {
    #[serde(serialize_with = "masked::url")]
    url: Option<String>,
    /// Connections per process; `None` is the default of the process.
    pub(crate) pool_size: Option<u32>,
}

#[derive(Clone, Serialize)]
pub(crate) struct BrokerSettings {
    #[serde(serialize_with = "masked::url")]
    pub(crate) url: Option<String>,
    pub(crate) queue: String,
}

#[derive(Clone, Serialize)]
pub(crate) struct ApiSettings {
    pub(crate) listen: SocketAddr,
    /// In bytes.
    pub(crate) max_body: usize,
    /// In bytes.
    max_page_bytes: usize,
    /// Requests per second and organization; 0 is unlimited.
    rate_limit: u32,
    rate_limit_burst: NonZeroU32,
    /// Failures per minute and client; 0 is unlimited.
    auth_failure_limit: u32,
    /// 0 is unlimited.
    max_connections_per_client: u32,
    #[serde(serialize_with = "masked::texts")]
    pub(crate) trusted_proxies: Vec<IpNet>,
    #[serde(serialize_with = "masked::duration")]
    pub(crate) drain_delay: Duration,
}

#[derive(Clone, Serialize)]
pub(crate) struct DispatcherSettings {
    /// Address of the health endpoints; `None` disables them.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) max_in_flight: u16,
    /// Payload bytes.
    max_in_flight_bytes: usize,
}

#[derive(Clone, Serialize)]
pub(crate) struct DeliverySettings {
    #[serde(serialize_with = "masked::duration")]
    pub(crate) timeout: Duration,
    #[serde(serialize_with = "masked::duration")]
    pub(crate) connect_timeout: Duration,
    #[serde(serialize_with = "masked::duration")]
    body_timeout: Duration,
    max_in_flight_per_destination: u16,
    #[serde(serialize_with = "masked::duration")]
    hold_cap: Duration,
    #[serde(serialize_with = "masked::durations")]
    pub(crate) schedule: Vec<Duration>,
    pub(crate) jitter: f64,
    pub(crate) max_attempts: AttemptNumber,
    #[serde(serialize_with = "masked::duration")]
    pub(crate) lease: Duration,
    pub(crate) payload_format: PayloadFormat,
    pub(crate) stop_on_gone: bool,
    send_traceparent: bool,
}

#[derive(Clone, Serialize)]
pub(crate) struct EgressSettings {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    #[serde(serialize_with = "masked::texts")]
    ports: Vec<PortRange>,
    https_only: bool,
    #[serde(serialize_with = "masked::texts")]
    nat64: Vec<Nat64Prefix>,
    ca_file: Option<PathBuf>,
    client_cert: Option<PathBuf>,
}

#[derive(Clone, Serialize)]
pub(crate) struct SecretsSettings {
    #[serde(serialize_with = "masked::keys")]
    keys: Vec<String>,
    #[serde(serialize_with = "masked::duration")]
    overlap: Duration,
}

#[derive(Clone, Serialize)]
struct RetentionSettings {
    #[serde(serialize_with = "masked::optional_duration")]
    deliveries: Option<Duration>,
    #[serde(serialize_with = "masked::optional_duration")]
    runs: Option<Duration>,
}

#[derive(Clone, Serialize)]
pub(crate) struct MetricsSettings {
    /// Address of the metrics; `None` disables them.
    pub(crate) listen: Option<ListenAddress>,
}

#[derive(Clone, Serialize)]
pub(crate) struct TracesSettings {
    /// Share of the traces that begin here, from 0 to 1.
    pub(crate) sample_ratio: f64,
}

#[derive(Clone, Serialize)]
pub(crate) struct LogSettings {
    pub(crate) filter: Option<String>,
    pub(crate) format: LogFormat,
}

impl Settings {
    /// Loads the configuration. `config_file` must exist if given; the default file is optional.
    pub(crate) fn load(config_file: Option<&Path>) -> Result<Settings, SettingsError> {
        let path = config_file.unwrap_or(Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if config_file.is_none() && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(SettingsError::File { path: path.to_owned(), error }),
        };
        let name = path.to_string_lossy();
        // Invalid UTF-8 is visible in the error about the variable's value.
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let variables = std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect();
        Settings::read(text.as_deref().map(|text| (&*name, text)), &variables)
    }

    /// Returns the defaults, ignoring the file and the environment.
    pub(crate) fn defaults() -> Result<Settings, SettingsError> {
        Settings::read(None, &Variables::default())
    }

    fn read(file: Option<(&str, &str)>, variables: &Variables) -> Result<Settings, SettingsError> {
        let source = Source::new(file, variables)?;
        let (own_database, own_broker) = (source.optional("database.url")?, source.optional("broker.url")?);
        let max_in_flight = source.within("dispatcher.max_in_flight", 1..=MOST_IN_FLIGHT)?;
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let settings = Settings {
            database: DatabaseSettings {
                url: own_database.clone().or_else(|| given("DATABASE_URL")),
                pool_size: source.within_optional("database.pool_size", FEWEST_CONNECTIONS..=1000)?,
            },
            broker: BrokerSettings {
                url: own_broker.clone().or_else(|| given("AMQP_URL")),
                queue: source.text("broker.queue")?,
            },
            api: ApiSettings {
                listen: source.parse("api.listen")?,
                max_body: source.within("api.max_body", Size(1024)..=LARGEST_BODY)?.0,
                max_page_bytes: source.within("api.max_page_bytes", Size(64 << 10)..=LARGEST_PAGE)?.0,
                rate_limit: source.within("api.rate_limit", 0..=HIGHEST_RATE)?,
                rate_limit_burst: source.within(
                    "api.rate_limit_burst",
                    NonZeroU32::MIN..=NonZeroU32::new(HIGHEST_RATE).unwrap_or(NonZeroU32::MAX),
                )?,
                auth_failure_limit: source.within("api.auth_failure_limit", 0..=HIGHEST_RATE)?,
                max_connections_per_client: source
                    .within("api.max_connections_per_client", 0..=HIGHEST_RATE)?,
                trusted_proxies: source.parse_list("api.trusted_proxies")?,
                drain_delay: source.duration("api.drain_delay", Duration::ZERO..=LONGEST_DRAIN)?,
            },
            dispatcher: DispatcherSettings {
                listen: source.parse_optional("dispatcher.listen")?,
                max_in_flight,
                max_in_flight_bytes: source
                    .within("dispatcher.max_in_flight_bytes", Size(1024)..=MOST_IN_FLIGHT_BYTES)?
                    .0,
            },
            delivery: DeliverySettings {
                timeout: source.duration("delivery.timeout", SHORTEST..=LONGEST)?,
                connect_timeout: source.duration("delivery.connect_timeout", SHORTEST..=LONGEST)?,
                body_timeout: source.duration("delivery.body_timeout", Duration::ZERO..=LONGEST)?,
                max_in_flight_per_destination: source
                    .within_optional("delivery.max_in_flight_per_destination", 1..=max_in_flight)?
                    .unwrap_or((max_in_flight / 8).max(1)),
                hold_cap: source.duration("delivery.hold_cap", Duration::ZERO..=LONGEST)?,
                schedule: source.durations("delivery.schedule", Duration::ZERO..=LONGEST)?,
                jitter: source.within("delivery.jitter", 0.0..=1.0)?,
                max_attempts: source.within("delivery.max_attempts", 1..=MOST_ATTEMPTS)?,
                lease: source.duration("delivery.lease", SHORTEST..=LONGEST)?,
                payload_format: one_of(&source, "delivery.payload_format", "python or compact")?,
                stop_on_gone: one_of(&source, "delivery.stop_on_gone", "true or false")?,
                send_traceparent: one_of(&source, "delivery.send_traceparent", "true or false")?,
            },
            egress: EgressSettings {
                allow: source.parse_list("egress.allow")?,
                deny: source.parse_list("egress.deny")?,
                ports: source.parse_list("egress.ports")?,
                https_only: one_of(&source, "egress.https_only", "true or false")?,
                nat64: source.parse_list("egress.nat64")?,
                ca_file: source.optional("egress.ca_file")?.map(PathBuf::from),
                client_cert: source.optional("egress.client_cert")?.map(PathBuf::from),
            },
            secrets: SecretsSettings {
                keys: source.list("secrets.keys")?,
                overlap: source.duration("secrets.overlap", Duration::ZERO..=LONGEST)?,
            },
            retention: RetentionSettings {
                deliveries: source.optional_duration("retention.deliveries", MINUTE..=LONGEST_RETENTION)?,
                runs: source.optional_duration("retention.runs", MINUTE..=LONGEST_RETENTION)?,
            },
            metrics: MetricsSettings { listen: source.parse_optional("metrics.listen")? },
            traces: TracesSettings { sample_ratio: source.within("traces.sample_ratio", 0.0..=1.0)? },
            log: LogSettings {
                filter: source.optional("log.filter")?,
                format: one_of(&source, "log.format", "text or json")?,
            },
        };
        settings.delivery.check()?;
        settings.retention.check()?;
        if settings.egress.ports.is_empty() {
            return Err(SettingsError::value("egress.ports", "expected at least one port"));
        }
        if let Some(filter) = &settings.log.filter {
            EnvFilter::try_new(filter)
                .map_err(|error| SettingsError::value("log.filter", error.to_string()))?;
        }
        // DATABASE_URL and AMQP_URL may be meant for other programs; the commands that use them check them.
        own_database.map(|_| settings.database_url()).transpose()?;
        own_broker.map(|_| settings.broker()).transpose()?;
        Ok(settings)
    }
}

impl RetentionSettings {
    /// Requires runs to be kept at least as long as deliveries. A run with a delivery is not removed; if its
    /// deliveries are kept forever, the run would be examined forever.
    fn check(&self) -> Result<(), SettingsError> {
        match (self.deliveries, self.runs) {
            (None, Some(_)) => {
                Err(SettingsError::value("retention.runs", "needs retention.deliveries to be set"))
            }
            (Some(deliveries), Some(runs)) if runs < deliveries => {
                Err(SettingsError::value("retention.runs", "must not be shorter than retention.deliveries"))
            }
            _ => Ok(()),
        }
    }
}

impl DeliverySettings {
    fn check(&self) -> Result<(), SettingsError> {
        let DeliverySettings { timeout, connect_timeout, lease, .. } = *self;
        if lease < timeout + MARGIN {
            // Otherwise a second attempt could begin while the first is still being sent.
            let problem = format!(
                "must be longer than delivery.timeout by {MARGIN:?} or more: {lease:?} is not, with {timeout:?}"
            );
            return Err(SettingsError::value("delivery.lease", problem));
        }
        if connect_timeout > timeout {
            let problem =
                format!("is part of delivery.timeout: {connect_timeout:?} is longer than {timeout:?}");
            return Err(SettingsError::value("delivery.connect_timeout", problem));
        }
        if self.schedule.is_empty() {
            return Err(SettingsError::value("delivery.schedule", "expected at least one wait"));
        }
        Ok(())
    }
}

fn one_of<T: FromStr>(source: &Source, key: &str, choices: &str) -> Result<T, SettingsError> {
    let text = source.text(key)?;
    text.parse().map_err(|_| SettingsError::value(key, format!("expected {choices}, not {text:?}")))
}

//! The configuration of each crate, made from the settings.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use api::Rate;
use dispatcher::RetryPolicy;
use egress::{Policy, Rules};
use queue::{Broker, BrokerError};
use store::{AcceptPolicy, DatabaseUrl, Keyring};

use super::{ApiSettings, DeliverySettings, EgressSettings, MARGIN, MINUTE, Settings, SettingsError};

/// Below the 30 s between SIGTERM and SIGKILL that orchestrators allow by default or the compose file sets.
const DRAIN: Duration = Duration::from_secs(20);
const SECOND: Duration = Duration::from_secs(1);

impl Settings {
    /// Returns the URL of the database, PostgreSQL or SQLite.
    pub(crate) fn database_url(&self) -> Result<DatabaseUrl, SettingsError> {
        const KEY: &str = "database.url (or DATABASE_URL)";
        let unset = "not set: give one such as postgres://user:password@host:5432/redial";
        let url = self.database.url.as_ref().ok_or_else(|| SettingsError::value(KEY, unset))?;
        url.parse().map_err(|error: store::DatabaseUrlError| SettingsError::value(KEY, error.to_string()))
    }

    /// Returns the URL of a service's database. SQLite is an error.
    pub(crate) fn postgres_url(&self) -> Result<DatabaseUrl, SettingsError> {
        match self.database_url()? {
            url @ DatabaseUrl::Postgres(_) => Ok(url),
            DatabaseUrl::Sqlite(_) => {
                let problem =
                    "a service needs PostgreSQL, postgres://…; `redial dev` is the one that runs on SQLite";
                Err(SettingsError::value("database.url (or DATABASE_URL)", problem))
            }
        }
    }

    /// Returns the broker of a service.
    pub(crate) fn broker(&self) -> Result<Broker, SettingsError> {
        const KEY: &str = "broker.url (or AMQP_URL)";
        let unset = "not set: give one such as amqp://user:password@host:5672";
        let url = self.broker.url.as_ref().ok_or_else(|| SettingsError::value(KEY, unset))?;
        Broker::parse(url, &self.broker.queue).map_err(|error| {
            let key = if matches!(error, BrokerError::Queue) { "broker.queue" } else { KEY };
            SettingsError::value(key, error.to_string())
        })
    }

    /// Returns the keys that encrypt signing secrets.
    pub(crate) fn keyring(&self) -> Result<Keyring, SettingsError> {
        Ok(Keyring::parse(&self.secrets.keys)?)
    }

    /// Returns the rules for callback destinations.
    pub(crate) fn egress_rules(&self) -> Rules {
        let EgressSettings { allow, deny, ports, https_only, nat64, .. } = self.egress.clone();
        Rules { allow, deny, ports, https_only, nat64 }
    }

    pub(crate) fn egress_policy(&self) -> Policy {
        self.egress_rules().into()
    }

    /// Returns the API's limits.
    pub(crate) fn limits(&self) -> api::Limits {
        let ApiSettings {
            rate_limit, rate_limit_burst, auth_failure_limit, max_connections_per_client, ..
        } = self.api;
        let (requests, failures) = (NonZeroU32::new(rate_limit), NonZeroU32::new(auth_failure_limit));
        api::Limits {
            requests: requests.map(|count| Rate::new(count, SECOND, rate_limit_burst)),
            auth_failures: failures.map(|count| Rate::new(count, MINUTE, count)),
            connections_of_client: NonZeroUsize::new(max_connections_per_client as usize)
                .map(NonZeroUsize::get),
            page_bytes: self.api.max_page_bytes,
            ..api::Limits::default()
        }
    }

    pub(crate) fn accept_policy(&self) -> AcceptPolicy {
        let DeliverySettings { max_attempts, payload_format, .. } = self.delivery;
        AcceptPolicy { max_attempts, payload_format }
    }

    pub(crate) fn dispatcher_settings(&self) -> dispatcher::Settings {
        let delivery = &self.delivery;
        dispatcher::Settings {
            limits: dispatcher::Limits {
                max_in_flight: self.dispatcher.max_in_flight.into(),
                max_in_flight_bytes: self.dispatcher.max_in_flight_bytes as u64,
                max_in_flight_per_destination: delivery.max_in_flight_per_destination.into(),
                lease: delivery.lease,
                timeout: delivery.timeout,
                retry: RetryPolicy {
                    schedule: delivery.schedule.clone(),
                    jitter: delivery.jitter,
                    stop_on_gone: delivery.stop_on_gone,
                    hold_cap: delivery.hold_cap,
                },
            },
            connect_timeout: delivery.connect_timeout,
            body_timeout: delivery.body_timeout,
            send_traceparent: delivery.send_traceparent,
            certificates: dispatcher::Certificates {
                ca_file: self.egress.ca_file.clone(),
                client_cert: self.egress.client_cert.clone(),
            },
            secret_overlap: self.secrets.overlap,
            retention: dispatcher::Retention {
                deliveries: self.retention.deliveries,
                runs: self.retention.runs,
            },
            drain: DRAIN.max(delivery.timeout + MARGIN),
        }
    }
}

//! Settings of a dispatcher, and why it can't start.

use std::path::PathBuf;
use std::time::Duration;

use engine::dispatch::Limits;
use thiserror::Error;

use crate::retention::Retention;

/// Settings of a dispatcher.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Limits of the state machine.
    pub limits: Limits,
    /// Timeout for connecting, part of an attempt's timeout.
    pub connect_timeout: Duration,
    /// Timeout for a response body once the head is complete. The part received by then is recorded.
    pub body_timeout: Duration,
    /// Whether receivers get the `traceparent` of a traced delivery.
    pub send_traceparent: bool,
    /// Certificates for TLS in addition to the system's.
    pub certificates: Certificates,
    /// How long after a promotion requests are also signed with the previous secret.
    pub secret_overlap: Duration,
    /// How long ended deliveries and runs are kept.
    pub retention: Retention,
    /// Timeout for a shutdown, including the attempts in flight.
    pub drain: Duration,
}

/// Why a dispatcher could not start.
#[derive(Debug, Error)]
pub enum DispatcherError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The system's certificate authorities could not be loaded.
    #[error("the system's certificate authorities could not be loaded: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate file can't be used.
    #[error("{key}: {}: {problem}", path.display())]
    Certificates {
        /// The setting that names the file.
        key: &'static str,
        /// The file's path.
        path: PathBuf,
        /// What is wrong with the file.
        problem: String,
    },
    /// The system's resolver configuration could not be read.
    #[error("the system's configuration for resolving names could not be read: {0}")]
    Names(#[from] hickory_resolver::net::NetError),
}

/// Certificates specific to an installation, in PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificates {
    /// Trusted in addition to the public authorities: other authorities, or self-signed certificates of
    /// receivers.
    pub ca_file: Option<PathBuf>,
    /// A client certificate with its chain and private key, for receivers that ask for one.
    pub client_cert: Option<PathBuf>,
}

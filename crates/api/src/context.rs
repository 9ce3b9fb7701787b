//! What all calls share.

use egress::Policy;
use ipnet::IpNet;
use ops::{Metrics, Readiness, Tracer};
use queue::Publisher;
use store::{AcceptPolicy, Keyring, Store};

use crate::guards::memory::MemoryBudget;
use crate::limits::Limits;

/// Dependencies and settings of the API.
#[derive(Clone)]
pub struct Api {
    /// The database.
    pub store: Store,
    /// Rings doorbells for accepted deliveries.
    pub publisher: Publisher,
    /// Decides which callback URLs are allowed.
    pub egress: Policy,
    /// Seals new signing secrets.
    pub keyring: Keyring,
    /// Settings fixed on a delivery when it is accepted.
    pub accept: AcceptPolicy,
    /// Maximum size of a request body, in bytes.
    pub max_body: usize,
    /// Limits that protect shared resources from a single caller.
    pub limits: Limits,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// Checks behind `GET /health/ready`.
    pub readiness: Readiness,
    /// Counts requests and accepted deliveries.
    pub metrics: Metrics,
    /// Traces requests and doorbells.
    pub tracer: Tracer,
}

/// Memory budgets shared by large requests.
pub(crate) struct MemoryBudgets {
    /// For bodies being read.
    pub(crate) arriving: MemoryBudget,
    /// For processing bodies, and for responses.
    pub(crate) working: MemoryBudget,
}

//! Database access: one schema and one body of query code for PostgreSQL and SQLite. Only this crate uses
//! diesel.
//!
//! A use case is a plain function of a connection, `now` and its arguments ([`redeliver`], [`claim_jobs`],
//! …). [`Store::write`] and [`Store::read`] run it on a blocking thread in one transaction. Tests may call
//! the same functions directly.

mod accept;
mod clock;
mod columns;
mod connect;
mod deliveries;
mod erase;
mod error;
mod idempotency;
mod keyring;
mod migrate;
mod organizations;
mod page;
mod prepared;
mod prune;
mod record;
mod redeliver;
mod rewrap;
mod runs;
mod schema;
mod secrets;
mod steps;
mod store;
mod tokens;
mod withdraw;

pub use accept::{AcceptPolicy, Accepted, insert_delivery};
pub use clock::Clock;
pub use connect::{AnyConnection, DatabaseUrl, DatabaseUrlError};
pub use deliveries::{
    DeliveryFilter, DeliveryParts, count_deliveries, deliveries_of_run, deliveries_page, delivery_bytes,
    find_delivery,
};
pub use erase::{Erasure, erase_run};
pub use error::{RowsRefused, StoreError, within};
pub use idempotency::{IdempotencyKey, forget_idempotency_keys};
pub use keyring::{Keyring, KeyringError, OpenError};
pub use migrate::{MIGRATIONS, Migration, SchemaState, migrate, migrate_to};
pub use organizations::{Organization, create_organization, find_organization, organization_ids};
pub use page::{PageRequest, Position, Rows, SortOrder};
pub use prune::{PruneKind, PruneRange, Pruned, prune, take_pruning_turn};
pub use record::{Deliver, RecordedRun, record_run};
pub use redeliver::{Redelivery, RedeliveryRequest, redeliver, redeliver_batch};
pub use rewrap::{MissingKey, Rewrapped, Unopened, missing_keys, rewrap_secrets};
pub use runs::{RunParts, find_run, run_bytes, runs_page};
pub use secrets::{
    CreatedSecret, SecretUpdate, UpdatedSecret, ValidSecret, create_secret, create_secret_once,
    disable_secret, find_secret, note_secret_used, open_secret, secrets_page, signing_secrets, update_secret,
};
pub use steps::claim::{ClaimResult, claim, claim_jobs, claimed_under};
pub use steps::finish::finish;
pub use steps::holds::forget_holds;
pub use steps::recover::recover_leases;
pub use steps::relay::{DueClaim, claim_due};
pub use store::Store;
pub use tokens::{
    NewToken, Principal, Token, TokenText, authenticate, create_token, list_tokens, revoke_token,
};
pub use withdraw::{Withdrawal, withdraw};

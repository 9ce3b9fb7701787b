//! Database access: one schema and one body of query code for PostgreSQL and SQLite. Only this crate uses
//! diesel.
//!
//! A use case is a plain function of a connection, `now` and its arguments ([`redeliver`], [`claim_jobs`],
//! …). [`Store::write`] and [`Store::read`] run it on a blocking thread in one transaction. Tests may call
//! the same functions directly.

mod clock;
mod columns;
mod connect;
mod connections;
mod database_url;
mod deliveries;
mod error;
mod idempotency;
mod inspect;
mod migrate;
mod organizations;
mod page;
mod pool;
mod prepared;
mod prune;
mod runs;
mod schema;
mod secrets;
mod store;
mod tokens;

pub use clock::Clock;
pub use connect::AnyConnection;
pub use database_url::{DatabaseUrl, DatabaseUrlError};
pub use deliveries::accept::{AcceptPolicy, Accepted, insert_delivery};
pub use deliveries::backlog::{Backlog, MOST_COUNTED, backlog};
pub use deliveries::claim::{ClaimResult, claim, claimed_under};
pub use deliveries::claim_jobs::claim_jobs;
pub use deliveries::filter::DeliveryFilter;
pub use deliveries::finish::finish;
pub use deliveries::holds::forget_holds;
pub use deliveries::read::{
    DeliveryParts, count_deliveries, deliveries_of_run, deliveries_page, delivery_bytes, find_delivery,
};
pub use deliveries::recover::recover_leases;
pub use deliveries::redeliver::{Redelivery, RedeliveryRequest, redeliver, redeliver_batch};
pub use deliveries::relay::{DueClaim, claim_due};
pub use deliveries::withdraw::{Withdrawal, withdraw};
pub use error::{RowsRefused, StoreError, within};
pub use idempotency::{IdempotencyKey, forget_idempotency_keys};
pub use inspect::{DatabaseFacts, PostgresFacts, clock_offset, database_facts};
pub use migrate::{MIGRATIONS, Migration, SchemaFacts, SchemaState, migrate, migrate_to, schema_facts};
pub use organizations::{Organization, create_organization, find_organization, organization_ids};
pub use page::{PageRequest, Position, Rows, SortOrder};
pub use prune::{PruneKind, PruneRange, Pruned, prune, take_pruning_turn};
pub use runs::erase::{Erasure, erase_run};
pub use runs::read::{RunParts, find_run, run_bytes, runs_page};
pub use runs::record::{Deliver, RecordedRun, record_run};
pub use secrets::keyring::{Keyring, KeyringError, OpenError};
pub use secrets::manage::{
    CreatedSecret, SecretUpdate, UpdatedSecret, create_secret, create_secret_once, disable_secret,
    find_secret, secrets_page, update_secret,
};
pub use secrets::rewrap::{
    MissingKey, OpenedSecrets, Rewrapped, Unopened, missing_keys, open_secrets, rewrap_secrets,
};
pub use secrets::signing::{ValidSecret, note_secret_used, open_secret, signing_secrets};
pub use store::Store;
pub use tokens::{
    NewToken, Principal, Token, TokenText, authenticate, create_token, list_tokens, revoke_token,
};

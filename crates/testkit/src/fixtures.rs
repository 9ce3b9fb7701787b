//! Small fixtures for many tests.

use contracts::{Delivery, OrgId, RunId, RunUpdate};
use store::{AnyConnection, DeliveryParts, Keyring, PageRequest, StoreError};

/// Returns all of a run's deliveries with all their parts, newest first; `None` if the organization has no
/// such run.
pub fn deliveries_of_run(
    tx: &mut AnyConnection,
    org: OrgId,
    run: RunId,
) -> Result<Option<Vec<Delivery>>, StoreError> {
    let found = store::deliveries_of_run(tx, org, run, &PageRequest::NEWEST, DeliveryParts::ALL)?;
    Ok(found.map(|found| found.rows.into_iter().map(|(_, delivery)| delivery).collect()))
}

/// Returns a keyring with one random key.
pub fn keyring() -> Keyring {
    Keyring::parse(&[Keyring::generate("test").as_str()]).expect("a generated key is usable")
}

/// Returns a succeeded run with `callback_url`.
pub fn terminal_run(callback_url: &str) -> RunUpdate {
    let body = format!(
        r#"{{"status_code": "succeeded", "output": {{"images": ["https://cdn.example.com/1.png"]}},
            "duration_ms": 123, "created_at": "2023-11-07T05:31:56Z", "completed_at": "2023-11-07T05:31:56Z",
            "callback_url": "{callback_url}", "metadata": {{"order": 17}}}}"#
    );
    RunUpdate::parse(body.as_bytes()).expect("the fixture is a valid run")
}

//! A database migrated while services are running.

use store::{MIGRATIONS, Migration, migrate_to};

use crate::system::{System, by_delivery, shared_broker};

const EXPANDING: Migration =
    Migration::new(100, "-- Oldest program: 13\nALTER TABLE runs ADD COLUMN priority integer;\n");
const CONTRACTING: Migration =
    Migration::new(101, "-- Oldest program: 100\nALTER TABLE runs DROP COLUMN priority;\n");

/// Migrates as the `redial migrate` of a later release would.
async fn migrate(system: &System, later: &'static [Migration]) {
    let url = system.database.url().clone();
    let migrations: Vec<Migration> = MIGRATIONS.iter().chain(later).copied().collect();
    let applied =
        tokio::task::spawn_blocking(move || migrate_to(&mut url.connect().unwrap(), &migrations).unwrap());
    assert_eq!(applied.await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compatible_migration_disturbs_no_running_service_and_an_incompatible_one_ends_them() {
    let mut system = System::start(&shared_broker(), 2, 2, &[]);
    let runs = system.import_runs(1_000, "/ok");
    let (first, second) = runs.split_at(500);
    // Each request is answered 201.
    let (_, accepted) = tokio::join!(migrate(&system, &[EXPANDING]), system.redeliver_all(first));
    assert_eq!(by_delivery(system.gather(accepted.len()).await).len(), accepted.len());
    // Replace one process after the other with the same release.
    system.apis.remove(0).stop();
    system.dispatchers.remove(0).stop();
    system.add_api();
    system.add_dispatcher();
    let accepted = system.redeliver_all(second).await;
    assert_eq!(by_delivery(system.gather(accepted.len()).await).len(), accepted.len());

    migrate(&system, &[EXPANDING, CONTRACTING]).await;
    for process in system.apis.drain(..).chain(system.dispatchers.drain(..)) {
        assert_eq!(process.ended(), Some(1));
    }
    let refusal = "admits programs from schema 100 on";
    assert!(system.logs.lock().unwrap().contains(refusal));
    for service in ["api", "dispatcher"] {
        let refused = system.refused(service);
        assert!(refused.contains(refusal) && refused.contains("update redial"), "{refused}");
    }
    system.stop().await;
}

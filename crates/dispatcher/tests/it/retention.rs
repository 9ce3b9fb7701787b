//! Deliveries and runs are deleted when their retention has passed.

use std::time::Duration;

use dispatcher::{Retention, Settings};
use testkit::Backend;
use tokio::time::Instant;

use crate::harness::{Harness, limited};

/// Two dispatchers share the work. A pending delivery is kept.
async fn deliveries_and_runs_are_deleted_after_their_retention(backend: Backend) {
    let harness = Harness::new(backend).await;
    let retention = Retention { deliveries: Some(Duration::ZERO), runs: Some(Duration::ZERO) };
    let patient = limited(|limits| limits.retry.schedule = vec![Duration::from_secs(600)]);
    let running = [(); 2].map(|()| harness.dispatch(Settings { retention, ..patient.clone() }));
    let waiting = harness.after_first_attempt(&running[0], &harness.receiver.url("/status/500")).await;
    for _ in 0..5 {
        let delivery = harness.accept(&harness.receiver.url("/ok")).await;
        running[1].publisher.ring(harness.job(&delivery, 1));
    }
    let org = harness.org;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = harness.store.read(move |tx| {
            let deliveries: i64 = store::count_deliveries(tx, org)?.values().sum();
            let runs = store::runs_page(tx, org, None, &store::PageRequest::NEWEST, store::RunParts::ALL)?
                .rows
                .len();
            Ok::<_, store::StoreError>((deliveries, runs))
        });
        if left.await.unwrap() == (1, 1) && harness.receiver.posts() == 6 {
            break;
        }
        assert!(Instant::now() < deadline, "not deleted in time");
        tokio::task::yield_now().await;
    }
    assert_eq!(harness.delivery(waiting.id).await.attempts.len(), 1);
    for running in running {
        running.stop().await;
    }
}

testkit::on_both_backends!(deliveries_and_runs_are_deleted_after_their_retention);

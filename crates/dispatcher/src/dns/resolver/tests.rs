use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A timeout that is never reached.
const LONG: Duration = Duration::from_secs(60);

fn judged(found: &[&str]) -> Result<Vec<IpAddr>, ResolveError> {
    let found: Vec<_> = found.iter().map(|address| address.parse().unwrap()).collect();
    permitted(&Policy::default(), "example.com", &found, None)
}

#[test]
fn refused_addresses_are_dropped_and_a_name_without_others_has_no_address() {
    assert_eq!(judged(&["10.0.0.1", "93.184.216.34"]).unwrap().len(), 1);
    assert!(matches!(judged(&["127.0.0.1", "::1"]), Err(ResolveError::NoAddress(_))));
}

#[test]
fn lookups_are_limited_by_the_file_descriptors_they_need() {
    assert_eq!([None, Some(1 << 20), Some(128)].map(|files| max_lookups(files, 5_000)), [1024, 1024, 8]);
    assert_eq!(max_lookups(Some(20_000), 5_000), 277);
    assert_eq!([256, 1].map(|max_in_flight| max_lookups(None, max_in_flight)), [256, 8]);
}

#[tokio::test]
async fn concurrent_callers_share_a_lookup_and_later_ones_start_a_new_one() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    static GO_ON: Semaphore = Semaphore::const_new(0);
    let look_up = |_| {
        CALLS.fetch_add(1, Ordering::Relaxed);
        async {
            GO_ON.acquire().await.unwrap().forget();
            Ok(vec!["192.0.2.1".parse().unwrap()])
        }
        .boxed()
    };
    let lookups = Lookups::new(look_up, LONG, 256);
    for calls in 1..=2 {
        let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(lookups.look_up(None, "example.com"))).collect();
        for look_up in &mut waiting {
            assert!(look_up.now_or_never().is_none());
        }
        GO_ON.add_permits(1);
        for look_up in waiting {
            assert_eq!(look_up.await.unwrap().len(), 1);
        }
        assert_eq!(CALLS.load(Ordering::Relaxed), calls);
    }
}

#[tokio::test]
async fn an_abandoned_lookup_is_not_started() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let look_up = |_| {
        CALLS.fetch_add(1, Ordering::Relaxed);
        async { Ok(vec![]) }.boxed()
    };
    let lookups = Lookups::new(look_up, LONG, 256);
    let all = lookups.slots.acquire_many(lookups.slots.available_permits() as u32).await.unwrap();
    assert!(lookups.look_up(None, "example.com").now_or_never().is_none());
    drop(all);
    while !lookups.state.lock().lookups.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn lookups_of_one_organization_leave_slots_for_others() {
    let look_up = |name: String| {
        if name.starts_with("silent") {
            return std::future::pending().boxed();
        }
        async { Ok(vec!["192.0.2.1".parse().unwrap()]) }.boxed()
    };
    let lookups = Lookups::new(look_up, LONG, 256);
    let [hanging, healthy] = [1, 2].map(|n| Some(OrgId(uuid::Uuid::from_u128(n))));
    let all = lookups.slots.available_permits();
    // More names than there are slots.
    let silent: Vec<_> = (0..2 * all).map(|n| format!("silent{n}.example")).collect();
    let mut waiting: Vec<_> = silent.iter().map(|name| Box::pin(lookups.look_up(hanging, name))).collect();
    for lookup in &mut waiting {
        assert!(lookup.now_or_never().is_none());
    }
    for n in 0..50 {
        assert_eq!(lookups.look_up(healthy, &format!("n{n}.example")).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_lookup_that_gets_no_slot_is_a_local_failure() {
    let lookups = Lookups::new(|_| async { Ok(vec![]) }.boxed(), Duration::from_millis(10), 256);
    let _all = lookups.slots.acquire_many(lookups.slots.available_permits() as u32).await.unwrap();
    let missed = NameError::Local(LocalFailure::NoLookup);
    assert_eq!(lookups.look_up(None, "example.com").await, Err(missed));
    assert!(lookups.state.lock().lookups.is_empty() && lookups.state.lock().organizations.is_empty());
}

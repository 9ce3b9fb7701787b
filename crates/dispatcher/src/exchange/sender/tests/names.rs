//! Names that resolve to the wrong addresses.

use std::net::Ipv6Addr;
use std::sync::Mutex;

use hickory_resolver::proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;

/// Listens on `addresses`, all on one free port, and records the local address of each connection. Answers
/// 204 and closes.
async fn canaries(addresses: &[IpAddr]) -> (u16, Arc<Mutex<Vec<IpAddr>>>) {
    let connected = Arc::<Mutex<Vec<IpAddr>>>::default();
    let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
    let port = first.local_addr().unwrap().port();
    let mut listeners = vec![first];
    for address in &addresses[1..] {
        listeners.push(TcpListener::bind((*address, port)).await.unwrap());
    }
    for listener in listeners {
        let connected = connected.clone();
        tokio::spawn(async move {
            let address = listener.local_addr().unwrap().ip();
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                connected.lock().unwrap().push(address);
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    loop {
                        let Ok(length @ 1..) = connection.read(&mut request).await else { return };
                        if request[..length].ends_with(b"{}") {
                            break;
                        }
                    }
                    let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                    let _ = connection.write_all(answer).await;
                });
            }
        });
    }
    (port, connected)
}

const TRIES: usize = 1_000;

/// DNS rebinding: a TTL of 0 and a different address for each query.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_its_address_with_each_query_never_leads_to_a_refused_one() {
    let allowed = IpAddr::from([127, 0, 0, 2]);
    let refused = [[127, 0, 0, 1], [127, 0, 0, 3], [127, 255, 255, 254]].map(IpAddr::from);
    let watched = [&[allowed], refused.as_slice(), &[Ipv6Addr::LOCALHOST.into()]].concat();
    let (port, connected) = canaries(&watched).await;
    let parse = |addresses: &[&str]| -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    };
    let v4 = parse(&["127.0.0.2", "127.0.0.1", "127.0.0.3", "0.0.0.0", "127.255.255.254", "10.0.0.1"]);
    let v6 = parse(&["::1", "::ffff:127.0.0.1", "::", "::127.0.0.1", "64:ff9b::7f00:1"]);
    let turns = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let names = NameServer::start(move |_, family| {
        let is_v6 = family == RecordType::AAAA;
        let addresses = if is_v6 { &v6 } else { &v4 };
        let turn = turns[usize::from(is_v6)].fetch_add(1, Ordering::SeqCst);
        Reply::Uncacheable(addresses[turn % addresses.len()])
    });
    let sender = sender_to("127.0.0.2/32", &settings(), &names.await, usize::MAX, LONG);
    let sender = Arc::new(sender);
    let mut tries = JoinSet::new();
    let mut outcomes = Vec::new();
    for _ in 0..TRIES {
        let (sender, url) = (sender.clone(), format!("http://rebinding.example:{port}/"));
        // A new organization each time, so that attempts don't share a lookup.
        tries.spawn(async move { sender.sent_for(OrgId(Uuid::new_v4()), &url).await.0 });
        if tries.len() >= 16 {
            outcomes.push(tries.join_next().await.unwrap().unwrap());
        }
    }
    outcomes.extend(tries.join_all().await);
    let (answered, failed): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| matches!(outcome, Outcome::Answered(_)));
    let detail = "rebinding.example does not resolve to an address that may be called";
    let blocked = Outcome::failed(FailureReason::DnsError, detail);
    assert!(failed.iter().all(|outcome| *outcome == blocked), "{failed:?}");
    assert!(answered.len() > TRIES / 20 && failed.len() > TRIES / 20, "{} answered", answered.len());
    let connected = connected.lock().unwrap();
    assert_eq!(connected.len(), answered.len());
    assert!(connected.iter().all(|address| *address == allowed), "a refused address was connected to");
}

/// A host in any spelling is judged by the address it would connect to.
#[tokio::test]
async fn no_spelling_of_loopback_is_connected_to() {
    let (port, connected) = canaries(&[Ipv6Addr::UNSPECIFIED.into()]).await; // accepts IPv4, too
    let names = NameServer::start(|_, _| Reply::Uncacheable([127, 0, 0, 1].into())).await;
    let sender = sender_to("192.0.2.0/24", &settings(), &names, usize::MAX, LONG);
    let hosts = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.1.",
        "1２7.0.0.1",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "0",
        "0.0.0.0",
        "127.127.127.127",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
        "loopback.example",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[64:ff9b:1::7f00:1]",
        "[2001:0:7f00:1::]",
        "[0000::0001]",
    ];
    for host in hosts {
        let outcome = sender.sent(&format!("http://{host}:{port}/")).await;
        let Outcome::Failed(failure) = outcome else { panic!("{host}: {outcome:?}") };
        use FailureReason::{BlockedAddress, DnsError, InvalidUrl};
        assert!(matches!(failure.reason, BlockedAddress | DnsError | InvalidUrl), "{host}: {failure:?}");
    }
    assert_eq!(*connected.lock().unwrap(), Vec::<IpAddr>::new());
}

/// Names with silent servers, many more at once than arrive at a rate of 15 a second.
#[tokio::test(flavor = "multi_thread")]
async fn hanging_names_of_one_organization_fail_no_attempt_of_another() {
    let receiver = Receiver::bind(([127, 0, 0, 1], 0).into(), receiver::Options::default()).unwrap();
    let port = receiver.addr().port();
    let names = NameServer::start(|name, _| match name.ends_with("hanging.example.") {
        true => Reply::Silence,
        false => Reply::Address([127, 0, 0, 1].into()),
    });
    let sender = Arc::new(sender(&names.await, usize::MAX));
    let [hanging, healthy] = [1, 2].map(|org| OrgId(Uuid::from_u128(org)));
    let mut silent = JoinSet::new();
    for n in 0..300 {
        let (sender, url) = (sender.clone(), format!("http://n{n}.hanging.example:{port}/ok"));
        silent.spawn(async move { sender.sent_for(hanging, &url).await.0 });
    }
    for n in 0..50 {
        let outcome = sender.sent_for(healthy, &format!("http://n{n}.healthy.example:{port}/ok")).await.0;
        assert!(matches!(outcome, Outcome::Answered(Response { status: 200, .. })), "{outcome:?}");
    }
    for outcome in silent.join_all().await {
        let is_told_right = match &outcome {
            Outcome::Failed(failure) => failure.detail.ends_with("could not be resolved: no answer"),
            Outcome::NotSent(cause) => *cause == LocalFailure::NoLookup,
            Outcome::Answered(_) => false,
        };
        assert!(is_told_right, "{outcome:?}");
    }
}

#[tokio::test]
async fn the_log_has_the_refused_address_and_the_record_does_not() {
    let names = NameServer::start(|_, _| Reply::Address([10, 1, 2, 3].into())).await;
    let (outcome, timing, trace) = sender(&names, usize::MAX).traced("http://internal.example/").await;
    let record = format!("{outcome:?} {timing:?}");
    assert!(!record.contains("10.1.2.3"), "{record}");
    assert_eq!(trace.refused_address(), Some([10, 1, 2, 3].into()));
}

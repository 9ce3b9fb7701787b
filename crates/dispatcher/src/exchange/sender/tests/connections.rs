//! How long connections are used: at most up to their maximum age, and not longer than the receiver keeps
//! them.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;

use super::*;

/// Starts a receiver that answers each request with `answer` and counts its connections. On an empty answer
/// it closes the connection.
fn receiver(
    address: &str,
    answer: impl Fn(usize) -> &'static str + Send + Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let answer = Arc::new(answer);
    let requests = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            let (answer, requests) = (answer.clone(), requests.clone());
            std::thread::spawn(move || answer_all(connection.unwrap(), &*answer, &requests));
        }
    });
    (origin, connections)
}

fn answer_all(mut connection: TcpStream, answer: &dyn Fn(usize) -> &'static str, requests: &AtomicUsize) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = connection.read(&mut buffer) {
        read.extend_from_slice(&buffer[..length]);
        if !read.ends_with(b"\r\n\r\n{}") {
            continue;
        }
        read.clear();
        let answer = answer(requests.fetch_add(1, Ordering::SeqCst));
        if answer.is_empty() || connection.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

async fn no_names() -> NameServer {
    NameServer::start(|_, _| Reply::Silence).await
}

async fn succeeds(sender: &Sender, url: &str) {
    let outcome = sender.sent(url).await;
    assert!(matches!(outcome, Outcome::Answered(Response { status: 204, .. })), "{outcome:?}");
}

const PLAIN: &str = "HTTP/1.1 204 No Content\r\n\r\n";

#[tokio::test]
async fn a_connection_is_reused() {
    let (url, connections) = receiver("127.0.0.1:0", |_| PLAIN);
    let sender = sender(&no_names().await, usize::MAX);
    for _ in 0..3 {
        succeeds(&sender, &url).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let (_, timing, _) = sender.traced(&url).await;
    assert_eq!((timing.connect, timing.tls), (None, None), "nothing was connected");
    assert_eq!(timing.remote_address, url.strip_prefix("http://").map(str::to_owned));
}

#[tokio::test]
async fn a_connection_is_not_reused_beyond_its_maximum_age() {
    let (url, connections) = receiver("127.0.0.1:0", |_| PLAIN);
    let names = no_names().await;
    let sender = sender_to("127.0.0.0/8", &settings(), &names, usize::MAX, Duration::ZERO);
    for _ in 0..3 {
        succeeds(&sender, &url).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

/// The receiver is called all the time, so that no connection is ever idle for long.
#[tokio::test]
async fn a_names_new_address_is_used_when_the_connection_is_renewed() {
    let (old, _) = receiver("127.0.0.2:0", |_| PLAIN);
    let port = old.rsplit_once(':').unwrap().1.to_owned();
    let (_, moved_to) = receiver(&format!("127.0.0.3:{port}"), |_| PLAIN);
    let address = Arc::new(Mutex::new(IpAddr::from([127, 0, 0, 2])));
    let now = address.clone();
    let names = NameServer::start(move |_, _| Reply::Uncacheable(*now.lock().unwrap())).await;
    let sender = sender_to("127.0.0.0/8", &settings(), &names, usize::MAX, Duration::ZERO);
    let url = format!("http://moving.example:{port}");
    succeeds(&sender, &url).await;
    *address.lock().unwrap() = [127, 0, 0, 3].into();
    for _ in 0..5 {
        succeeds(&sender, &url).await;
    }
    assert_eq!(moved_to.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn connections_of_a_receiver_that_announces_a_short_timeout_are_kept_briefly() {
    const HASTY: &str = "HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=1, max=100\r\n\r\n";
    let (url, connections) = receiver("127.0.0.1:0", |_| HASTY);
    let sender = sender(&no_names().await, usize::MAX);
    for _ in 0..3 {
        succeeds(&sender, &url).await;
    }
    // The first connection is not reused; the second one is, while that is safe.
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn connections_of_a_receiver_that_closed_a_reused_one_are_kept_briefly() {
    let (url, connections) = receiver("127.0.0.1:0", |request| if request == 1 { "" } else { PLAIN });
    let (origin, sender) = (TargetUrl::parse(&url).unwrap().origin(), sender(&no_names().await, usize::MAX));
    succeeds(&sender, &url).await;
    assert!(!sender.clients.has_short_keep_alive(&origin));
    let outcome = sender.sent(&url).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert!(sender.clients.has_short_keep_alive(&origin));
    succeeds(&sender, &url).await;
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

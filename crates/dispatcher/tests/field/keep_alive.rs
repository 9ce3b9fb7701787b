//! Callbacks timed for the moment at which a receiver drops its idle connection, across a slow path.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use contracts::Job;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Stack;
use crate::receivers::{read_request, receiver};

pub(crate) const CALLBACKS: usize = 40;
/// Idle time after which the receiver drops a connection.
const IDLE: Duration = Duration::from_secs(1);
/// In each direction.
const LATENCY: Duration = Duration::from_millis(50);
/// A request is lost if it is sent less than the latency before or after the drop. The callbacks are spread
/// over this time.
const SPREAD: Duration = Duration::from_millis(140);

/// Returns how many callbacks failed. `is_announced`: the receivers announce when they drop connections, as
/// Node does.
pub(crate) async fn aimed_at_idle_ends(stack: &Stack, is_announced: bool) -> usize {
    let stack = &stack;
    let aims = (0..CALLBACKS).map(|n| async move {
        let answered_at = Arc::<Mutex<Option<Instant>>>::default();
        let noted = answered_at.clone();
        let drops =
            receiver(move |connection| drops_idle_connections(connection, is_announced, noted.clone()));
        let url = slow_path(drops.await).await;
        let first = stack.accept(&url, 0).await;
        assert!(stack.succeeds(first).await, "the first callback arrives");
        let second = stack.accept(&url, 0).await;
        let offset = SPREAD.mul_f64(n as f64 / CALLBACKS as f64);
        let answered_at = answered_at.lock().unwrap().expect("it has answered");
        sleep_until(answered_at + IDLE - SPREAD / 2 + offset).await;
        stack.succeeds(second).await
    });
    join_all(aims).await.into_iter().filter(|succeeded| !succeeded).count()
}

impl Stack {
    async fn succeeds(&self, job: Job) -> bool {
        let id = job.delivery_id;
        self.publisher.ring(job);
        self.attempt(id).await.error_message.is_none()
    }
}

async fn drops_idle_connections(
    mut connection: TcpStream,
    is_announced: bool,
    answered_at: Arc<Mutex<Option<Instant>>>,
) {
    let announcement = if is_announced { "Keep-Alive: timeout=1\r\n" } else { "" };
    let answer = format!("HTTP/1.1 200 OK\r\n{announcement}Content-Length: 0\r\n\r\n");
    while let Ok(true) = timeout(IDLE, read_request(&mut connection)).await {
        *answered_at.lock().unwrap() = Some(Instant::now());
        if connection.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Returns the URL of a proxy for `origin` with a delay in each direction, which also applies to the end of a
/// connection.
async fn slow_path(origin: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let target = Arc::new(origin.strip_prefix("http://").unwrap().to_owned());
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let target = target.clone();
            tokio::spawn(async move {
                let far = TcpStream::connect(&*target).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::join!(delayed(near_in, far_out), delayed(far_in, near_out));
            });
        }
    });
    url
}

async fn delayed(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin) {
    let (sent, mut arriving) = unbounded_channel();
    let read = async move {
        loop {
            let mut packet = Vec::with_capacity(4096);
            let length = from.read_buf(&mut packet).await.unwrap_or(0);
            let _ = sent.send((Instant::now() + LATENCY, packet));
            if length == 0 {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, packet)) = arriving.recv().await {
            sleep_until(at).await;
            if packet.is_empty() || to.write_all(&packet).await.is_err() {
                let _ = to.shutdown().await;
                return;
            }
        }
    };
    tokio::join!(read, write);
}

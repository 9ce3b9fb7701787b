//! Receivers on plain TCP, so that they can send anything.

use std::future::Future;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves each connection with `act`, and returns the URL.
pub(crate) async fn receiver<F>(act: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(act(connection));
        }
    });
    format!("http://127.0.0.1:{port}")
}

/// Reads a whole request, and returns whether one arrived.
pub(crate) async fn read_request(connection: &mut TcpStream) -> bool {
    let Some((head, body)) = read_head(connection).await else { return false };
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
    });
    read(connection, length.unwrap_or(0).saturating_sub(body)).await
}

/// Reads a request's head. Returns it with the number of body bytes received along with it.
async fn read_head(connection: &mut TcpStream) -> Option<(String, usize)> {
    let mut received = Vec::new();
    loop {
        if let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            return Some((head, received.len() - end - 4));
        }
        if connection.read_buf(&mut received).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// Reads `bytes` bytes, and returns whether they arrived.
pub(crate) async fn read(connection: &mut TcpStream, bytes: usize) -> bool {
    let mut left = bytes;
    let mut buffer = vec![0; 16 * 1024];
    while left > 0 {
        let room = left.min(buffer.len());
        match connection.read(&mut buffer[..room]).await {
            Ok(length @ 1..) => left -= length,
            _ => return false,
        }
    }
    true
}

/// Stays silent until the other side closes the connection.
pub(crate) async fn hang(mut connection: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(1..) = connection.read(&mut buffer).await {}
}

/// Closes the connection with RST.
pub(crate) fn reset(connection: TcpStream) {
    SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
    drop(connection);
}

/// Starts a receiver that answers each request with `answer` and keeps the connection open.
pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> String {
    let answer: Vec<u8> = answer.into();
    receiver(move |mut connection| {
        let answer = answer.clone();
        async move {
            while read_request(&mut connection).await && connection.write_all(&answer).await.is_ok() {}
        }
    })
    .await
}

/// Starts a receiver that answers one request with `answer` and closes the connection.
pub(crate) async fn answering_once(answer: impl Into<Vec<u8>>) -> String {
    let answer: Vec<u8> = answer.into();
    receiver(move |mut connection| {
        let answer = answer.clone();
        async move {
            read_request(&mut connection).await;
            let _ = connection.write_all(&answer).await;
        }
    })
    .await
}

//! A TCP proxy between a client and a server that a test can disturb.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Forwards TCP connections to a server. When dropped, it cuts its connections and refuses new ones.
pub struct Proxy {
    /// The listen address.
    pub addr: SocketAddr,
    state: Arc<watch::Sender<Line>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Open,
    /// Connections are accepted and kept open, but no byte is forwarded, as with a hung host or a stopped
    /// process.
    Frozen,
    /// The same for new connections; existing ones are cut.
    BlackHole,
    Closed,
}

impl Proxy {
    /// Starts a proxy in front of `server`.
    pub async fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let state = Arc::new(watch::Sender::new(Line::Open));
        tokio::spawn({
            let (line, mut closed) = (state.subscribe(), state.subscribe());
            async move {
                let serve = async {
                    while let Ok((client, _)) = listener.accept().await {
                        tokio::spawn(connection(client, server, line.clone()));
                    }
                };
                tokio::select! {
                    () = serve => {}
                    _ = closed.wait_for(|line| *line == Line::Closed) => {}
                }
            }
        });
        Proxy { addr, state }
    }

    /// Stops forwarding in both directions. Connections are still accepted.
    pub fn freeze(&self) {
        self.state.send_replace(Line::Frozen);
    }

    /// Cuts all connections. New ones are accepted but get no response.
    pub fn swallow(&self) {
        self.state.send_replace(Line::BlackHole);
    }

    /// Forwards the bytes held back, and resumes forwarding.
    pub fn thaw(&self) {
        self.state.send_replace(Line::Open);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_replace(Line::Closed);
    }
}

async fn connection(client: TcpStream, server: SocketAddr, mut line: watch::Receiver<Line>) {
    // Don't connect to the server while the proxy does not forward.
    let opened = line.wait_for(|line| matches!(line, Line::Open | Line::Closed)).await.map(|line| *line);
    if opened.ok() != Some(Line::Open) {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // When one side closes, close the other.
    tokio::select! {
        _ = pass(from_client, to_server, line.clone()) => {}
        _ = pass(from_server, to_client, line.clone()) => {}
        _ = line.wait_for(|line| matches!(line, Line::BlackHole | Line::Closed)) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
) -> Option<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = from.read(&mut buffer).await.ok().filter(|len| *len > 0)?;
        line.wait_for(|line| *line == Line::Open).await.ok()?;
        to.write_all(&buffer[..len]).await.ok()?;
    }
}

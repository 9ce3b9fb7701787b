//! Receiver that verifies callbacks and records their arrival times.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use contracts::SigningSecret;
use receiver::{Options, Received, Receiver};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep, timeout};

use crate::TIMEOUT;

/// A receiver and the arrival times of its callbacks.
pub(crate) struct Arrivals {
    /// Absent during an outage.
    receiver: Option<Receiver>,
    address: SocketAddr,
    options: Options,
    coming: UnboundedReceiver<Received>,
    /// First arrival of each delivery.
    first: HashMap<String, Instant>,
}

impl Arrivals {
    pub(crate) fn listen(secret: &str) -> Result<Arrivals> {
        let (sink, coming) = unbounded_channel();
        let secrets = vec![SigningSecret::parse(secret).context("invalid signing secret")?];
        let options = Options { secrets, sink: Some(sink), ..Options::default() };
        let receiver = Receiver::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), options.clone())?;
        let (address, first) = (receiver.addr(), HashMap::new());
        Ok(Arrivals { receiver: Some(receiver), address, options, coming, first })
    }

    /// Returns a URL for each destination. All addresses of 127.0.0.0/8 are this host.
    pub(crate) fn urls(&self, path: &str, destinations: u32) -> Vec<String> {
        let port = self.address.port();
        let host = |n| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + n);
        (0..destinations).map(|n| format!("http://{}:{port}{path}", host(n))).collect()
    }

    /// Refuses connections for a while.
    pub(crate) async fn pause(&mut self, pause: Duration) -> Result<()> {
        if let Some(receiver) = self.receiver.take() {
            receiver.stop().await;
        }
        sleep(pause).await;
        self.receiver = Some(Receiver::bind(self.address, self.options.clone())?);
        Ok(())
    }

    pub(crate) fn invalid(&self) -> u64 {
        self.receiver.as_ref().map_or(0, Receiver::invalid)
    }

    /// Returns the first arrival of a delivery, if it has arrived.
    pub(crate) fn first(&mut self, id: &str) -> Option<Instant> {
        while let Ok(received) = self.coming.try_recv() {
            self.note(&received);
        }
        self.first.get(id).copied()
    }

    /// Waits for the first arrival of a delivery.
    pub(crate) async fn of(&mut self, id: &str) -> Result<Instant> {
        loop {
            if let Some(at) = self.first.get(id) {
                return Ok(*at);
            }
            let received =
                timeout(TIMEOUT, self.coming.recv()).await.context("a callback did not arrive in time")?;
            self.note(&received.context("the receiver has stopped")?);
        }
    }

    fn note(&mut self, received: &Received) {
        if let Some(id) = received.header("webhook-id") {
            self.first.entry(id.to_owned()).or_insert(received.received_at);
        }
    }
}

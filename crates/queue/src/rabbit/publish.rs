//! The task that publishes doorbells to RabbitMQ.

use std::pin::pin;
use std::time::Duration;

use contracts::Job;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::broker::{Broker, Node};
use crate::doorbell::{consumer::Message, publisher::PublisherStats};
use crate::rabbit::backoff::Backoff;
use crate::rabbit::session::{Lost, Session, TIMEOUT};

/// The most unconfirmed messages. A quorum queue confirms in batches; this keeps them large.
const WINDOW: usize = 256;
/// A doorbell older than this isn't sent: the relay claims a delivery two seconds after its acceptance.
const STALE: Duration = Duration::from_secs(5);

/// Publishes until `shutdown`, or until the last publisher is dropped.
pub(crate) async fn run(
    broker: Broker,
    mut doorbells: mpsc::Receiver<Vec<Message>>,
    stats: watch::Sender<PublisherStats>,
    shutdown: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let node = broker.next_node();
        let ended = session(&node, &mut doorbells, &stats, &shutdown).await;
        stats.send_modify(|stats| stats.connected = false);
        let Err(lost) = ended else { return };
        warn!(broker = %node, reason = %lost, "publisher not connected, reconnecting");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = backoff.wait(&lost) => {}
        }
    }
}

async fn session(
    node: &Node,
    doorbells: &mut mpsc::Receiver<Vec<Message>>,
    stats: &watch::Sender<PublisherStats>,
    shutdown: &CancellationToken,
) -> Result<(), Lost> {
    let session = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        session = Session::open(node, "redial api") => session?,
    };
    // The listener starts before the last response awaited here, so no loss is missed.
    let events = session.connection.events_listener();
    timeout(TIMEOUT, session.channel.confirm_select(ConfirmSelectOptions::default())).await??;
    stats.send_modify(|stats| (stats.connected, stats.connects) = (true, stats.connects + 1));
    info!(broker = %node, "publishing");
    publish(node, &session, events, doorbells, stats, shutdown).await?;
    session.close().await;
    Ok(())
}

/// Publishes full messages without waiting for confirms, and partial ones when no message is in flight.
async fn publish(
    node: &Node,
    session: &Session,
    events: impl Stream<Item = Event>,
    doorbells: &mut mpsc::Receiver<Vec<Message>>,
    stats: &watch::Sender<PublisherStats>,
    shutdown: &CancellationToken,
) -> Result<(), Lost> {
    let Session { connection, channel, .. } = session;
    let mut events = pin!(events);
    let queue = node.queue.as_str();
    let confirmed = async |body: Vec<u8>| -> Result<Confirmation, Lost> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let sent = channel.basic_publish("".into(), queue.into(), options, &body, persistent);
        Ok(timeout(TIMEOUT, async { sent.await?.await }).await??)
    };
    let send = |jobs: &[Job]| {
        let (count, confirmed) = (jobs.len(), confirmed(Job::encode(jobs)));
        async move { (count, confirmed.await) }
    };
    let worth_sending = |gathered: &mut Vec<Vec<Message>>| -> Vec<Job> {
        let count = count(gathered);
        let is_worth =
            |doorbell: &Message| !connection.status().blocked() && doorbell.since.elapsed() < STALE;
        let jobs: Vec<Job> =
            gathered.drain(..).flatten().filter(is_worth).map(|doorbell| doorbell.job).collect();
        if jobs.len() < count {
            stats.send_modify(|stats| stats.dropped += (count - jobs.len()) as u64);
        }
        jobs
    };

    let mut unconfirmed = FuturesUnordered::new();
    let mut sent = 0; // jobs in unconfirmed messages
    let mut gathered = Vec::new();
    let mut last = false;
    let ended = loop {
        // A message is sent at once when no other is in flight. Doorbells that arrive meanwhile are gathered
        // into the next one, because the broker's cost is per message and nearly independent of the number of
        // jobs in it.
        if last || unconfirmed.is_empty() || count(&gathered) >= Job::MOST {
            let jobs = worth_sending(&mut gathered);
            sent += jobs.len();
            unconfirmed.extend(jobs.chunks(Job::MOST).map(send));
        }
        if last && unconfirmed.is_empty() {
            break Ok(());
        }
        tokio::select! {
            Some((count, outcome)) = unconfirmed.next() => {
                sent -= count;
                let published = matches!(outcome, Ok(Confirmation::Ack(None)));
                let counted = |stats: &mut PublisherStats| {
                    *if published { &mut stats.published } else { &mut stats.refused } += count as u64;
                };
                stats.send_modify(counted);
                match outcome {
                    Ok(Confirmation::Ack(Some(_))) => break Err(Lost::Returned),
                    // The broker has blocked publishers and would block a new connection as well.
                    Err(Lost::Late(_)) if connection.status().blocked() => {}
                    Err(lost) => break Err(lost),
                    // A full queue nacks.
                    Ok(_) => {}
                }
            }
            event = events.next() => match event {
                Some(Event::Error(error)) => break Err(error.into()),
                Some(Event::ConnectionBlocked(reason)) => warn!(broker = %node, reason, "the broker blocks publishers"),
                Some(Event::ConnectionUnblocked) => info!(broker = %node, "the broker accepts messages again"),
                _ => {}
            },
            came = doorbells.recv_many(&mut gathered, Job::MOST), if !last && unconfirmed.len() < WINDOW => {
                last = came == 0;
            }
            () = shutdown.cancelled(), if !last => {
                while let Ok(together) = doorbells.try_recv() {
                    gathered.push(together);
                }
                last = true;
            }
        }
    };
    stats.send_modify(|stats| {
        stats.refused += sent as u64;
        stats.dropped += count(&gathered) as u64;
    });
    ended
}

fn count(gathered: &[Vec<Message>]) -> usize {
    gathered.iter().map(Vec::len).sum()
}

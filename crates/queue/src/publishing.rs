//! The task that publishes doorbells to RabbitMQ.

use std::pin::pin;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::session::{Lost, PATIENCE, Session};
use crate::{Broker, Message, PublisherStats};

/// How many doorbells may be unconfirmed. A quorum queue confirms in batches; this keeps them large.
const WINDOW: usize = 256;
/// A doorbell older than this isn't sent: the relay looks for itself two seconds after a delivery's acceptance.
const STALE: Duration = Duration::from_secs(5);

/// Publishes until `shutdown`, or until the last publisher is dropped.
pub(crate) async fn run(
    broker: Broker,
    mut doorbells: mpsc::Receiver<Message>,
    stats: watch::Sender<PublisherStats>,
    shutdown: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let ended = session(&broker, &mut doorbells, &stats, &shutdown).await;
        stats.send_modify(|stats| stats.connected = false);
        let Err(lost) = ended else { return };
        warn!(%broker, reason = %lost, "not publishing, connecting again");
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = backoff.wait(&lost) => {}
        }
    }
}

async fn session(
    broker: &Broker,
    doorbells: &mut mpsc::Receiver<Message>,
    stats: &watch::Sender<PublisherStats>,
    shutdown: &CancellationToken,
) -> Result<(), Lost> {
    let session = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        session = Session::open(broker, "redial api") => session?,
    };
    // Listened to from before the last answer awaited here, so no loss goes unnoticed.
    let events = session.connection.events_listener();
    timeout(PATIENCE, session.channel.confirm_select(ConfirmSelectOptions::default())).await??;
    stats.send_modify(|stats| (stats.connected, stats.connects) = (true, stats.connects + 1));
    info!(%broker, "publishing");
    publish(broker, &session, events, doorbells, stats, shutdown).await?;
    session.close().await;
    Ok(())
}

/// Publishes without waiting for one confirm before the next message.
async fn publish(
    broker: &Broker,
    session: &Session,
    events: impl Stream<Item = Event>,
    doorbells: &mut mpsc::Receiver<Message>,
    stats: &watch::Sender<PublisherStats>,
    shutdown: &CancellationToken,
) -> Result<(), Lost> {
    let Session { connection, channel, .. } = session;
    let mut events = pin!(events);
    let queue = broker.queue.as_str();
    let send = async |doorbell: Message| -> Result<Confirmation, Lost> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let body = doorbell.job.encode();
        let sent = channel.basic_publish("".into(), queue.into(), options, &body, persistent);
        Ok(timeout(PATIENCE, async { sent.await?.await }).await??)
    };
    let worth_sending =
        |doorbell: &Message| !connection.status().blocked() && doorbell.since.elapsed() < STALE;
    let dropped = || stats.send_modify(|stats| stats.dropped += 1);

    let mut unconfirmed = FuturesUnordered::new();
    let mut last = false;
    let ended = loop {
        if last && unconfirmed.is_empty() {
            break Ok(());
        }
        tokio::select! {
            Some(outcome) = unconfirmed.next() => {
                let published = matches!(outcome, Ok(Confirmation::Ack(None)));
                stats.send_modify(|stats| *if published { &mut stats.published } else { &mut stats.refused } += 1);
                match outcome {
                    Ok(Confirmation::Ack(Some(_))) => break Err(Lost::Returned),
                    // The broker told us to wait; a new connection would only be told so again.
                    Err(Lost::Late(_)) if connection.status().blocked() => {}
                    Err(lost) => break Err(lost),
                    // A full queue nacks.
                    Ok(_) => {}
                }
            }
            event = events.next() => match event {
                Some(Event::Error(error)) => break Err(error.into()),
                Some(Event::ConnectionBlocked(reason)) => warn!(%broker, reason, "the broker takes no messages"),
                Some(Event::ConnectionUnblocked) => info!(%broker, "the broker takes messages again"),
                _ => {}
            },
            doorbell = doorbells.recv(), if !last && unconfirmed.len() < WINDOW => match doorbell {
                Some(doorbell) if worth_sending(&doorbell) => unconfirmed.push(send(doorbell)),
                Some(_) => dropped(),
                None => last = true,
            },
            () = shutdown.cancelled(), if !last => {
                while let Ok(doorbell) = doorbells.try_recv() {
                    if worth_sending(&doorbell) {
                        unconfirmed.push(send(doorbell));
                    } else {
                        dropped();
                    }
                }
                last = true;
            }
        }
    };
    stats.send_modify(|stats| stats.refused += unconfirmed.len() as u64);
    ended
}

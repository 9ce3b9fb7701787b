//! The task that consumes doorbells from RabbitMQ.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use contracts::{Job, JobError};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::broker::{Broker, Node};
use crate::doorbell::consumer::{ConsumerStats, Message};
use crate::doorbell::consumer::{Forwarding, ack};
use crate::rabbit::backoff::Backoff;
use crate::rabbit::session::{Lost, Session, TIMEOUT};

/// The consumer's name on its channel, where it is the only one.
const TAG: &str = "redial";

/// The interval of liveness checks on the consuming channel.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Consumes until `shutdown`, or until the consumer is dropped.
pub(crate) async fn run(
    broker: Broker,
    prefetch: u16,
    mut forwarding: Forwarding,
    shutdown: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let node = broker.next_node();
        let listened = listen(&node, prefetch, &mut forwarding, &shutdown).await;
        forwarding.stats.send_modify(|stats| stats.connected = false);
        match listened {
            Ok(Ended::Paused) => debug!(broker = %node, "consumer paused"),
            Ok(Ended::Stopped) => return,
            Err(lost) => {
                warn!(broker = %node, reason = %lost, "consumer not connected, reconnecting");
                tokio::select! {
                    () = stopped(&shutdown, &forwarding.messages) => return,
                    () = backoff.wait(&lost) => {}
                }
            }
        }
    }
}

/// Waits for the shutdown, or until the consumer is dropped.
async fn stopped(shutdown: &CancellationToken, messages: &mpsc::Sender<Vec<Message>>) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = messages.closed() => {}
    }
}

/// Why a session ended without an error.
enum Ended {
    Paused,
    Stopped,
}

/// Runs one session: waits until it is needed and ends when it is lost or no longer needed.
async fn listen(
    node: &Node,
    prefetch: u16,
    forwarding: &mut Forwarding,
    shutdown: &CancellationToken,
) -> Result<Ended, Lost> {
    let Forwarding { messages, stats, paused } = forwarding;
    let open = async {
        // This fails when the consumer is dropped, which `stopped` waits for.
        let _ = paused.wait_for(|paused| !paused).await;
        Session::open(node, "redial dispatcher").await
    };
    let session = tokio::select! {
        () = stopped(shutdown, messages) => return Ok(Ended::Stopped),
        session = open => session?,
    };
    let ended = tokio::select! {
        () = stopped(shutdown, messages) => Ended::Stopped,
        Ok(_) = paused.wait_for(|paused| *paused) => Ended::Paused,
        Err(lost) = consume(node, &session, prefetch, messages, stats) => return Err(lost),
    };
    // When this is answered, all acknowledgements queued before it have been written.
    let cancel = session.channel.basic_cancel(TAG.into(), BasicCancelOptions::default());
    let _ = timeout(TIMEOUT, cancel).await;
    if let Ended::Paused = ended {
        // Acknowledges the rest. Returned messages count towards the delivery limit, and would be parked
        // after an outage that all dispatchers hit. Losing a doorbell is harmless: the relay finds the
        // delivery.
        let all = BasicAckOptions { multiple: true };
        let _ = timeout(TIMEOUT, session.channel.basic_ack(0, all)).await;
    }
    session.close().await;
    Ok(ended)
}

/// Forwards messages until the session is lost.
async fn consume(
    node: &Node,
    session: &Session,
    prefetch: u16,
    messages: &mpsc::Sender<Vec<Message>>,
    stats: &watch::Sender<ConsumerStats>,
) -> Result<Infallible, Lost> {
    let Session { channel, .. } = session;
    timeout(TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await??;
    let (queue, options) = (node.queue.as_str().into(), BasicConsumeOptions::default());
    let consume = channel.basic_consume(queue, TAG.into(), options, FieldTable::default());
    let mut deliveries = timeout(TIMEOUT, consume).await??;
    stats.send_modify(|stats| (stats.connected, stats.connects) = (true, stats.connects + 1));
    info!(broker = %node, prefetch, "consuming");
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // At the last liveness check messages were waiting and there was room for them, and none has arrived
    // since.
    let mut is_passed_over = false;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery.ok_or(Lost::Cancelled)??,
            _ = heartbeat.tick() => {
                let depth = session.depth(node).await?;
                alert_of_parked(node, stats, depth.parked);
                let has_room = messages.capacity() == messages.max_capacity();
                let waits = depth.waiting > 0 && has_room;
                if depth.consumers == 0 {
                    return Err(Lost::Cancelled);
                }
                if waits && is_passed_over {
                    return Err(Lost::PassedOver);
                }
                is_passed_over = waits;
                stats.send_modify(|stats| stats.alive_at = Some(Instant::now()));
                continue;
            }
        };
        is_passed_over = false;
        match Job::decode(&delivery.data) {
            // Fails only when the consumer is dropped, which ends the task.
            Ok(jobs) => drop(messages.send(Message::heard(jobs, delivery.acker)).await),
            Err(error) => {
                stats.send_modify(|stats| stats.undecodable += 1);
                warn!(broker = %node, bytes = delivery.data.len(), reason = reason(&error), "invalid job message dropped");
                ack(&delivery.acker);
            }
        }
    }
}

/// Logs a change of the number of parked messages. The relay serves their deliveries, but an operator should
/// find out what ended every connection that received them.
fn alert_of_parked(node: &Node, stats: &watch::Sender<ConsumerStats>, parked: u32) {
    let changed = stats.send_if_modified(|stats| std::mem::replace(&mut stats.parked, parked) != parked);
    if changed && parked > 0 {
        warn!(broker = %node, parked, queue = node.parked, "messages are parked: they were delivered too often");
    }
}

/// Returns why a message is not a job, without quoting its contents.
fn reason(error: &JobError) -> String {
    match error {
        JobError::Malformed(error) => format!("{:?} error at column {}", error.classify(), error.column()),
        JobError::Attempt(_) | JobError::Count(_) | JobError::Version(_) => error.to_string(),
    }
}

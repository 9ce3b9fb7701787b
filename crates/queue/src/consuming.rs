//! The task that consumes doorbells from RabbitMQ.

use std::convert::Infallible;

use contracts::{Job, JobError};
use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::consumer::ack;
use crate::session::{Lost, PATIENCE, Session};
use crate::{Broker, ConsumerStats, Message};

/// The consumer's name on its channel, where it is the only one.
const TAG: &str = "redial";

/// Consumes until `shutdown`, or until the consumer is dropped.
pub(crate) async fn run(
    broker: Broker,
    prefetch: u16,
    messages: mpsc::Sender<Message>,
    stats: watch::Sender<ConsumerStats>,
    shutdown: CancellationToken,
) {
    let stop = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = messages.closed() => {}
        }
    };
    let mut stop = std::pin::pin!(stop);
    let mut backoff = Backoff::new();
    loop {
        let opened = tokio::select! {
            () = &mut stop => return,
            opened = Session::open(&broker, "redial dispatcher") => opened,
        };
        let ended = match opened {
            Err(lost) => Err(lost),
            Ok(session) => tokio::select! {
                () = &mut stop => {
                    // By the time this is answered, acknowledgements handed over before it are written.
                    let cancel = session.channel.basic_cancel(TAG.into(), BasicCancelOptions::default());
                    let _ = timeout(PATIENCE, cancel).await;
                    session.close().await;
                    Ok(())
                }
                Err(lost) = consume(&broker, &session, prefetch, &messages, &stats) => Err(lost),
            },
        };
        stats.send_modify(|stats| stats.connected = false);
        let Err(lost) = ended else { return };
        warn!(%broker, reason = %lost, "not consuming, connecting again");
        tokio::select! {
            () = &mut stop => return,
            () = backoff.wait() => {}
        }
    }
}

/// Forwards messages until the session is lost.
async fn consume(
    broker: &Broker,
    session: &Session,
    prefetch: u16,
    messages: &mpsc::Sender<Message>,
    stats: &watch::Sender<ConsumerStats>,
) -> Result<Infallible, Lost> {
    let Session { channel, .. } = session;
    timeout(PATIENCE, channel.basic_qos(prefetch, BasicQosOptions::default())).await??;
    let (queue, options) = (broker.queue.as_str().into(), BasicConsumeOptions::default());
    let consume = channel.basic_consume(queue, TAG.into(), options, FieldTable::default());
    let mut deliveries = timeout(PATIENCE, consume).await??;
    stats.send_modify(|stats| (stats.connected, stats.connects) = (true, stats.connects + 1));
    info!(%broker, prefetch, "consuming");
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        match Job::decode(&delivery.data) {
            // This fails only when the consumer is dropped, which ends the task.
            Ok(job) => drop(messages.send(Message::heard(job, delivery.acker)).await),
            Err(error) => {
                stats.send_modify(|stats| stats.undecodable += 1);
                warn!(%broker, bytes = delivery.data.len(), reason = reason(&error), "message is no job, dropped");
                ack(&delivery.acker);
            }
        }
    }
    Err(Lost::Cancelled)
}

/// Why a message is no job, without quoting from it.
fn reason(error: &JobError) -> String {
    match error {
        JobError::Malformed(error) => format!("{:?} error at column {}", error.classify(), error.column()),
        JobError::Attempt(_) | JobError::Version(_) => error.to_string(),
    }
}

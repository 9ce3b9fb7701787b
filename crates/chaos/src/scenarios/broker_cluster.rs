//! A RabbitMQ cluster whose nodes are killed in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::{RabbitNode, percentile};
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::sleep;
use uuid::Uuid;

use super::broker::{GRACE, all_accepted};
use super::{Outcome, conclude, ms, secs, waits};
use crate::Scale;
use crate::installation::{Installation, Place, Plan, Servers};
use crate::load::{Answers, Pace, request_redeliveries};
use crate::report::Row;

const NODES: usize = 3;
/// Redeliveries for each kill, over ten seconds.
const COUNT: usize = 1000;
const RATE: f64 = 100.0;
/// Load before the kill.
const BEFORE: Duration = Duration::from_secs(2);
/// How long a node may take to start and to join its queues again.
const TIMEOUT: Duration = Duration::from_secs(120);
const DATABASE: &str = "broker_cluster";

/// Kills the node that leads the queue, under load, and starts it again; again and again.
pub(crate) async fn leaders_killed(servers: &mut Servers, scale: &Scale) -> Result<Outcome> {
    scale.say("starting a cluster");
    let mut nodes = spawn_blocking(|| RabbitNode::start_cluster(NODES)).await?;
    let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let database = format!("{DATABASE}_{}", Uuid::new_v4().simple());
    servers.cluster.sql("postgres", &format!("CREATE DATABASE {database}"))?;
    let place = Place {
        database_url: servers.cluster.url(&database),
        database,
        broker_url: format!("amqp://guest:guest@{}/%2f", hosts.join(",")),
    };
    let installation = Installation::open_at(servers, Plan::of("broker-cluster", 2, 2), place).await?;
    let kills = scale.of(20);
    let (mut answers, mut killed) = (Answers::default(), vec![0; NODES]);
    for kill in 1..=kills {
        scale.say(format!("{kill} of {kills} leaders killed"));
        let runs = installation.runs(COUNT, "/ok").await?;
        let pace = Pace { clients: 16, rate: Some(RATE) };
        let load = tokio::spawn(request_redeliveries(&installation, runs, pace));
        sleep(BEFORE).await;
        let queue = installation.queue.as_str();
        block_in_place(|| {
            let leader = Members::of(queue, &nodes[0])?.leader;
            let leader = nodes.iter().position(|node| node.name() == leader).context("an unknown leader")?;
            killed[leader] += 1;
            nodes[leader].kill();
            nodes[leader].restart();
            // Without a majority of its members the queue would be unavailable.
            let deadline = Instant::now() + TIMEOUT;
            while Members::of(queue, &nodes[0])?.online < NODES {
                ensure!(Instant::now() < deadline, "{} does not join the queue again", nodes[leader].name());
            }
            Ok(())
        })?;
        answers.add(load.await??);
        installation.all_ended(kill * COUNT).await?;
    }
    let count = kills * COUNT;
    let waits = waits(&installation.history().await?, &installation.ledger.receipts());
    let mut waits: Vec<Duration> = waits.into_iter().map(|(_, wait)| wait).collect();
    let [half, nearly_all, longest] = [0.5, 0.99, 1.0].map(|share| percentile(&mut waits, share));
    let posts = installation.ledger.posts();
    let each = killed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let rows = vec![
        Row::new("leaders killed, by node", kills.to_string(), each, killed.iter().sum::<usize>() == kills),
        all_accepted(&answers, count),
        // A node that starts takes much of the machine's time.
        Row::new("api's answers, p99", "", ms(answers.percentile(0.99)), true),
        Row::new("acceptance to arrival, median", "", ms(half), true),
        // A doorbell that gets lost with its node costs the wait for the relay.
        Row::new("… p99", secs(2 * GRACE), secs(nearly_all), nearly_all <= 2 * GRACE),
        Row::new("… at most", "", secs(longest), true),
        Row::new("callbacks", count.to_string(), posts.to_string(), posts == count as u64),
    ];
    conclude(installation, rows, &answers, &[]).await
}

/// Members of a quorum queue.
struct Members {
    leader: String,
    /// Number of those that take part.
    online: usize,
}

impl Members {
    /// Asks a node about a queue.
    fn of(queue: &str, node: &RabbitNode) -> Result<Members> {
        let text = node.command(&["list_queues", "--no-table-headers", "name", "leader", "online"]);
        let mut lines = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let line = lines.find(|words| words.first() == Some(&queue)).context("the queue is not listed")?;
        let [_, leader, online] = line.as_slice() else { anyhow::bail!("a line of {} words", line.len()) };
        Ok(Members { leader: (*leader).to_owned(), online: online.matches('@').count() })
    }
}

//! The mixed load of a soak: runs that end, with payloads and receivers of several kinds, and redeliveries.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use contracts::RunId;
use parking_lot::Mutex;
use rand::prelude::*;
use rand::rngs::StdRng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};
use uuid::Uuid;

use crate::installation::Installation;
use crate::ledger::Ledger;
use crate::load::{Answers, Client};

/// New deliveries per second: a small part of what two cores can take.
const RATE: u32 = 120;
/// Maximum requests at once.
const CLIENTS: usize = 64;
/// Receivers that respond at once.
pub(super) const GOOD: &str = "/ok";

/// A kind of receiver: its script, its share of the runs, and its destinations.
struct Kind {
    path: &'static str,
    share: u32,
    destinations: std::ops::Range<u32>,
}

/// Those that always hang get few runs: each takes a slot for the whole timeout, four times.
static KINDS: [Kind; 4] = [
    Kind { path: GOOD, share: 64, destinations: 0..20 },
    Kind { path: "/hang/1", share: 15, destinations: 20..40 },
    Kind { path: "/mixed", share: 20, destinations: 40..80 },
    Kind { path: "/hang/30", share: 1, destinations: 80..120 },
];
/// Sizes of a run's output in bytes, with their shares.
const SIZES: [(usize, u32); 4] = [(700, 70), (5_000, 20), (40_000, 9), (200_000, 1)];

/// What was asked for, and the responses.
#[derive(Default)]
pub(super) struct Asked {
    /// Runs that were recorded, each of which is delivered once automatically.
    pub(super) runs: HashSet<RunId>,
    /// Runs whose delivery has ended, to be delivered again.
    pub(super) again: VecDeque<RunId>,
    /// Responses, and the deliveries that were requested.
    pub(super) answers: Answers,
}

/// Asks for deliveries at a steady rate until `until`, and returns when all requests were accepted.
pub(super) fn run(
    installation: &Installation,
    until: Instant,
    seed: u64,
    asked: Arc<Mutex<Asked>>,
) -> impl Future<Output = Result<()>> + use<> {
    let (client, mut mix) = (Client::of(installation), Mix::new(&installation.ledger, seed));
    async move {
        let (mut requests, places) = (JoinSet::new(), Arc::new(Semaphore::new(CLIENTS)));
        let mut ticks = interval(Duration::from_secs(1) / RATE);
        let mut turn = 0;
        while Instant::now() < until {
            ticks.tick().await;
            turn += 1;
            while let Some(ended) = requests.try_join_next() {
                ended??;
            }
            let place = places.clone().acquire_owned().await?;
            let request = {
                let mut asked = asked.lock();
                match asked.again.pop_front() {
                    Some(run) => (run, None),
                    None => {
                        let (run, body) = mix.next()?;
                        // Its delivery may exist before the response arrives.
                        asked.runs.insert(run);
                        (run, Some(body))
                    }
                }
            };
            let (client, asked) = (client.clone(), asked.clone());
            requests.spawn(async move {
                let mut answers = Answers::default();
                match request {
                    (run, Some(body)) => client.record(turn, run, &body, &mut answers).await?,
                    (run, None) => client.redeliver(turn, run, &mut answers).await?,
                }
                asked.lock().answers.add(answers);
                drop(place);
                anyhow::Ok(())
            });
        }
        while let Some(ended) = requests.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// Draws runs.
struct Mix {
    rng: StdRng,
    /// The kinds of receivers with their URLs.
    receivers: Vec<(&'static Kind, Vec<String>)>,
}

impl Mix {
    fn new(ledger: &Ledger, seed: u64) -> Mix {
        let urls = |kind: &Kind| kind.destinations.clone().map(|to| ledger.url_of(to, kind.path)).collect();
        let receivers = KINDS.iter().map(|kind| (kind, urls(kind))).collect();
        Mix { rng: StdRng::seed_from_u64(seed), receivers }
    }

    /// Returns a run and its JSON.
    fn next(&mut self) -> Result<(RunId, String)> {
        let Mix { rng, receivers } = self;
        let (_, urls) = receivers.choose_weighted(rng, |(kind, _)| kind.share)?;
        let (size, _) = SIZES.choose_weighted(rng, |(_, share)| *share)?;
        let url = urls.choose(rng).context("a receiver without a URL")?;
        let output = "x".repeat(*size);
        let body = format!(
            r#"{{"status_code":"succeeded","output":{{"text":"{output}"}},"duration_ms":1,"callback_url":"{url}","metadata":{{}}}}"#
        );
        Ok((RunId(Uuid::new_v4()), body))
    }
}

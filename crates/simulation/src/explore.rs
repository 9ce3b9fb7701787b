//! Plays many histories on all cores.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::ProgressBar;
use parking_lot::Mutex;
use testkit::MemoryDatabase;

use crate::history::play;
use crate::promise::{Broken, Counts};

/// Combined result of many histories.
#[derive(Debug, Default)]
pub(crate) struct Explored {
    pub(crate) counts: Counts,
    pub(crate) steps: usize,
    /// The lowest failing seed that was found, with its failure.
    pub(crate) broken: Option<(u64, Broken)>,
}

/// Plays the histories of `seeds` until `is_noticed` accepts a failure. `prepare` runs first on each thread.
pub(crate) fn explore(
    seeds: Range<u64>,
    bar: &ProgressBar,
    prepare: impl Fn(&mut MemoryDatabase) + Sync,
    is_noticed: impl Fn(&Broken) -> bool + Sync,
) -> Explored {
    let (next, explored) = (AtomicU64::new(seeds.start), Mutex::new(Explored::default()));
    let work = || {
        let (mut database, mut counts, mut steps) = (MemoryDatabase::default(), Counts::new(), 0);
        prepare(&mut database);
        let mut broken = None;
        while broken.is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let played = play(&mut database, &mut counts, seed, false);
            steps += played.steps;
            broken = played.broken.filter(&is_noticed).map(|broken| (seed, broken));
            bar.inc(1);
        }
        if broken.is_some() {
            next.store(seeds.end, Ordering::Relaxed);
        }
        let mut all = explored.lock();
        all.steps += steps;
        for (what, times) in counts {
            *all.counts.entry(what).or_default() += times;
        }
        if let Some(found) = broken
            && all.broken.as_ref().is_none_or(|known| found.0 < known.0)
        {
            all.broken = Some(found);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZeroUsize::get) {
            scope.spawn(work);
        }
    });
    explored.into_inner()
}

/// Events that 10,000 histories must include. Without them, the histories prove less than they claim.
const EXPECTED: &[&str] = &[
    "accepted",
    "accepted, but the response was lost",
    "a run's end announced",
    "a delivery withdrawn",
    "a run erased",
    "a late result of an erased run",
    "an api killed between commit and publish",
    "a queue purged",
    "a database outage",
    "a database's clock changed",
    "messages returned to the queue during a database outage",
    "a claim whose commit came through unnoticed",
    "a transaction run after its dispatcher had abandoned it",
    "a claim refused by the database",
    "a result refused by the database",
    "a recovery refused by the database",
    "a row stepped over",
    "a dispatcher killed between claim and acknowledgement",
    "a dispatcher stopped with nothing in flight",
    "an attempt lost",
    "an attempt handed back",
    "a number handed back",
    "an attempt too late to begin",
    "an attempt too late to write",
    "an address refused",
    "a late failure",
    "a late success",
    "a late success that closes its delivery",
    "a delivery with all attempts used up",
    "an attempt claimed ahead",
    "a destination held",
    "a probe",
    "a hold ended by its probe",
    "an expired hold deleted",
    "a payload above the byte limit, alone in flight",
];

/// Returns the expected events that never occurred.
pub(crate) fn never(counts: &Counts) -> Vec<&'static str> {
    EXPECTED.iter().copied().filter(|what| !counts.contains_key(what)).collect()
}

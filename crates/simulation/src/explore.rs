//! Many histories, on every core.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::ProgressBar;
use testkit::MemoryDatabase;

use crate::history::play;
use crate::mutant::Mutant;
use crate::world::Broken;

/// How often each interesting thing came about.
pub(crate) type Seen = BTreeMap<&'static str, usize>;

/// What histories showed.
#[derive(Debug, Default)]
pub(crate) struct Explored {
    pub(crate) seen: Seen,
    pub(crate) steps: usize,
    /// The lowest seed found that broke a promise, and which.
    pub(crate) broken: Option<(u64, Broken)>,
}

/// What thousands of histories must have come across, or they prove less than they say.
const EXPECTED: [&str; 20] = [
    "accepted",
    "a run's end announced",
    "a run erased",
    "a late result of an erased run",
    "a database's clock set",
    "accepted, and the client was not told",
    "an api killed between commit and publish",
    "a queue purged",
    "a database away",
    "messages left to others while the database is away",
    "a claim whose commit came through unnoticed",
    "a dispatcher killed between claim and acknowledgement",
    "an attempt lost",
    "a late failure",
    "a late success",
    "a late success that closes its delivery",
    "an address refused",
    "an attempt too late to begin",
    "an attempt too late to write",
    "a budget used up",
];

/// Which of them never came about.
pub(crate) fn never(seen: &Seen) -> Vec<&'static str> {
    EXPECTED.into_iter().filter(|what| !seen.contains_key(what)).collect()
}

/// Plays the histories of `seeds`, until one breaks a promise.
pub(crate) fn explore(seeds: Range<u64>, mutant: Option<Mutant>, bar: &ProgressBar) -> Explored {
    let (next, explored) = (AtomicU64::new(seeds.start), Mutex::new(Explored::default()));
    let work = || {
        let (mut database, mut seen, mut steps) = (MemoryDatabase::default(), Seen::new(), 0);
        let mut broken = None;
        while broken.is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let told = play(&mut database, &mut seen, seed, mutant, false);
            steps += told.steps;
            let is_noticed = |broken: &Broken| mutant.is_none() || matches!(broken, Broken::Promise(_));
            broken = told.broken.filter(is_noticed).map(|broken| (seed, broken));
            bar.inc(1);
        }
        if broken.is_some() {
            next.store(seeds.end, Ordering::Relaxed);
        }
        let mut all = explored.lock().expect("no holder panics");
        all.steps += steps;
        for (what, times) in seen {
            *all.seen.entry(what).or_default() += times;
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
    explored.into_inner().expect("no holder panics")
}

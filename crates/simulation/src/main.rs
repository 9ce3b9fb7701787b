//! Random histories of the delivery engine: the real store on SQLite in memory and the dispatcher's real steps, driven
//! one by one in an order drawn from a seed, with stand-ins for queue, receiver and clock, and failures everywhere.
//! After every step that writes, the invariants of ARCHITECTURE.md are checked against what really happened.

mod accepting;
mod actors;
mod dispatching;
mod explore;
mod facts;
mod history;
mod mutant;
mod recording;
mod world;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::ProgressBar;
use strum::VariantArray;
use testkit::MemoryDatabase;

use crate::explore::{Explored, explore};
use crate::history::play;
use crate::mutant::Mutant;

/// Plays random histories of the delivery engine, with failures at every step, and checks the invariants after each.
/// Then breaks one protection after the other, each of which must be noticed.
#[derive(Parser)]
struct Arguments {
    /// How many histories.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first one's seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Play this one alone, and tell it step by step.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// With a protection broken.
    #[arg(long, requires = "seed")]
    mutant: Option<String>,
}

/// Histories within which a mutant must be noticed.
const MUTANT_SEEDS: u64 = 5000;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout();
    if let Some(seed) = arguments.seed {
        return tell(seed, arguments.mutant.as_deref());
    }
    let began = Instant::now();
    let bar = ProgressBar::new(arguments.seeds);
    let seeds = arguments.first..arguments.first + arguments.seeds;
    let Explored { seen, steps, broken } = explore(seeds, None, &bar);
    bar.finish_and_clear();
    for (what, times) in &seen {
        writeln!(out, "{times:>9} × {what}")?;
    }
    let violations = usize::from(broken.is_some());
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "{} histories, {steps} steps, {violations} violations, {seconds:.1} s", arguments.seeds)?;
    if let Some((seed, why)) = broken {
        writeln!(out, "seed {seed}: {why}\nreplay it with: scripts/simulate --seed {seed}")?;
        return Ok(ExitCode::FAILURE);
    }
    let never = explore::never(&seen);
    if arguments.seeds >= 1000 && !never.is_empty() {
        writeln!(out, "never came about: {}", never.join(", "))?;
        return Ok(ExitCode::FAILURE);
    }
    let mut unnoticed = 0;
    for mutant in Mutant::VARIANTS {
        let name = <&str>::from(mutant);
        match explore(0..MUTANT_SEEDS, Some(*mutant), &ProgressBar::hidden()).broken {
            Some((seed, why)) => writeln!(out, "{name}: noticed by seed {seed}: {why}")?,
            None => {
                unnoticed += 1;
                writeln!(out, "{name}: NOT NOTICED in {MUTANT_SEEDS} histories")?;
            }
        }
    }
    writeln!(out, "{} of {} mutants noticed", Mutant::VARIANTS.len() - unnoticed, Mutant::VARIANTS.len())?;
    Ok(if unnoticed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays one history, step by step.
fn tell(seed: u64, mutant: Option<&str>) -> Result<ExitCode> {
    let find = |name: &str| Mutant::VARIANTS.iter().copied().find(|mutant| <&str>::from(mutant) == name);
    let mutant = match mutant {
        Some(name) => Some(find(name).with_context(|| format!("no mutant {name}"))?),
        None => None,
    };
    let told = play(&mut MemoryDatabase::default(), &mut Default::default(), seed, mutant, true);
    let mut out = std::io::stdout();
    for line in &told.trace {
        writeln!(out, "{line}")?;
    }
    let end = told.broken.as_ref().map_or("every promise was kept".into(), ToString::to_string);
    writeln!(out, "{} steps; {end}", told.steps)?;
    Ok(if told.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_histories_keep_the_invariants() {
        let explored = explore(1_000_000..1_000_500, None, &ProgressBar::hidden());
        assert_eq!(explored.broken, None);
    }

    #[test]
    fn a_seed_is_always_the_same_history() {
        let trace = || play(&mut MemoryDatabase::default(), &mut Default::default(), 17, None, true).trace;
        let first = trace();
        assert!(first.len() > 50);
        assert_eq!(first, trace());
    }
}

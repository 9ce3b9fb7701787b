//! Deterministic simulation of the delivery engine.
//!
//! Drives the production state machine (`engine`) and the production store, on in-memory SQLite, through
//! random histories. A seed determines the order of the steps. The queue, the receivers and the clocks are
//! simulated, and any step can fail. After every step that writes, the invariants of ARCHITECTURE.md are
//! checked against an independent record of events.

mod actors;
mod apis;
mod broker;
mod checks;
mod claims;
mod driving;
mod explore;
mod facts;
mod failures;
mod fairness;
mod held_destination;
mod history;
mod holds;
#[cfg(feature = "mutants")]
mod mutants;
mod process;
mod promise;
mod receivers;
mod sending;
mod shape;
mod transactions;
mod work;
mod world;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use indicatif::ProgressBar;
use testkit::MemoryDatabase;

use crate::explore::{Explored, explore};
use crate::history::play;

/// Plays random histories of the delivery engine, with failures at any step, and checks the invariants after
/// each step. Then disables the protections one at a time and checks that each missing one is noticed.
#[derive(Parser)]
struct Arguments {
    /// Number of histories.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Seed of the first history.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Play only the history of this seed and print it step by step.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Play the scenario of a destination that answers 429 with `Retry-After` for 12 hours.
    #[arg(long, conflicts_with_all = ["seeds", "first", "seed"])]
    held_destination: bool,
    /// Disable this protection, such as `Fencing`.
    #[cfg(feature = "mutants")]
    #[arg(long, requires = "seed", value_parser = mutants::named)]
    without: Option<engine::protection::Protection>,
    /// Play only the mutants.
    #[cfg(feature = "mutants")]
    #[arg(long, conflicts_with_all = ["seeds", "first", "seed"])]
    mutants: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = std::io::stdout();
    let mut database = MemoryDatabase::default();
    #[cfg(feature = "mutants")]
    if let Some(protection) = arguments.without {
        mutants::without(protection, &mut database);
    }
    if arguments.held_destination {
        writeln!(out, "{}", held_destination::HALF_A_DAY.play()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(seed) = arguments.seed {
        return tell(seed, &mut database);
    }
    #[cfg(feature = "mutants")]
    if arguments.mutants {
        return Ok(exit_code(mutants::explore_all(&mut out)?));
    }
    let began = Instant::now();
    let bar = ProgressBar::new(arguments.seeds);
    let seeds = arguments.first..arguments.first + arguments.seeds;
    let Explored { counts, steps, broken } = explore(seeds, &bar, |_| {}, |_| true);
    bar.finish_and_clear();
    for (what, times) in &counts {
        writeln!(out, "{times:>9} × {what}")?;
    }
    let violations = usize::from(broken.is_some());
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "{} histories, {steps} steps, {violations} violations, {seconds:.1} s", arguments.seeds)?;
    if let Some((seed, why)) = broken {
        writeln!(out, "seed {seed}: {why}\nreplay it with: scripts/simulate --seed {seed}")?;
        return Ok(ExitCode::FAILURE);
    }
    let never = explore::never(&counts);
    if arguments.seeds >= 10_000 && !never.is_empty() {
        writeln!(out, "never occurred: {}", never.join(", "))?;
        return Ok(ExitCode::FAILURE);
    }
    #[cfg(feature = "mutants")]
    if !mutants::explore_all(&mut out)? {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(is_success: bool) -> ExitCode {
    if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays one history and prints it step by step.
fn tell(seed: u64, database: &mut MemoryDatabase) -> Result<ExitCode> {
    let played = play(database, &mut Default::default(), seed, true);
    let mut out = std::io::stdout();
    for line in &played.trace {
        writeln!(out, "{line}")?;
    }
    let end = played.broken.as_ref().map_or("every invariant held".into(), ToString::to_string);
    writeln!(out, "{} steps; {end}", played.steps)?;
    Ok(exit_code(played.broken.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_histories_keep_the_invariants() {
        let explored = explore(1_000_000..1_000_500, &ProgressBar::hidden(), |_| {}, |_| true);
        assert_eq!(explored.broken, None);
    }

    #[test]
    fn a_seed_always_yields_the_same_history() {
        let traces = || {
            let mut database = MemoryDatabase::default();
            (0..50)
                .map(|seed| play(&mut database, &mut Default::default(), seed, true).trace)
                .collect::<Vec<_>>()
        };
        let first = traces();
        assert!(first.iter().all(|trace| trace.len() > 50));
        assert_eq!(first, traces());
    }
}

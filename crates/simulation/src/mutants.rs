//! Mutants of the production code. Each lacks one protection of the engine or the store and must violate an
//! invariant that the simulation checks.

use std::io::Write;

use anyhow::{Context, Result};
use engine::protection::{Protection, switch_off};
use indicatif::ProgressBar;
use strum::VariantArray;
use testkit::MemoryDatabase;

use crate::explore::explore;
use crate::promise::Broken;

/// Number of histories within which a mutant must be noticed.
const SEEDS: u64 = 20_000;

/// Disables a protection on this thread and in its database.
pub(crate) fn without(protection: Protection, database: &mut MemoryDatabase) {
    switch_off(Some(protection));
    if protection == Protection::OneOpenDelivery {
        database.execute("DROP INDEX one_open_delivery");
    }
}

/// Returns the protection called `name`.
pub(crate) fn named(name: &str) -> Result<Protection> {
    let found = Protection::VARIANTS.iter().copied().find(|protection| <&str>::from(protection) == name);
    found.with_context(|| format!("unknown protection {name}"))
}

/// Plays histories of each mutant until an invariant is violated. Returns whether all mutants were noticed.
pub(crate) fn explore_all(out: &mut impl Write) -> Result<bool> {
    let mut noticed = 0;
    for protection in Protection::VARIANTS {
        let name = <&str>::from(protection);
        let is_promise = |broken: &Broken| matches!(broken, Broken::Promise(_));
        let prepare = |database: &mut MemoryDatabase| without(*protection, database);
        match explore(0..SEEDS, &ProgressBar::hidden(), prepare, is_promise).broken {
            Some((seed, why)) => {
                noticed += 1;
                writeln!(out, "without {name}: noticed by seed {seed}: {why}")?;
            }
            None => writeln!(out, "without {name}: NOT NOTICED in {SEEDS} histories")?,
        }
    }
    writeln!(out, "{noticed} of {} mutants noticed", Protection::VARIANTS.len())?;
    Ok(noticed == Protection::VARIANTS.len())
}

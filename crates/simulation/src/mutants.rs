//! Mutants of the shipped code: each lacks one protection of the engine or the store, and must break a promise that the
//! simulation checks.

use std::io::Write;

use anyhow::{Context, Result};
use engine::protection::{Protection, switch_off};
use indicatif::ProgressBar;
use strum::VariantArray;
use testkit::MemoryDatabase;

use crate::explore::explore;
use crate::world::Broken;

/// Within how many histories a mutant must be noticed.
const SEEDS: u64 = 20_000;

/// Switches a protection off, on this thread and in its database.
pub(crate) fn without(protection: Protection, database: &mut MemoryDatabase) {
    switch_off(Some(protection));
    if protection == Protection::OneOpenDelivery {
        database.execute("DROP INDEX one_open_delivery");
    }
}

/// The protection of that name.
pub(crate) fn named(name: &str) -> Result<Protection> {
    let found = Protection::VARIANTS.iter().copied().find(|protection| <&str>::from(protection) == name);
    found.with_context(|| format!("no protection {name}"))
}

/// Plays histories of each mutant until a promise breaks. Returns whether all were noticed.
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

//! Each deliberate fault is caught, by an invariant that it may break, within its number of seeds.

use clap::ValueEnum as _;
use futures::StreamExt as _;
use maillage_simulations::Mutant;

use crate::Shape;
use crate::batch::{run_apart, wait_for};

/// The first seed tried.
const FIRST_SEED: u64 = 1;

/// Runs every mutant, or `only` one, until it is caught; prints the table.
pub(crate) fn show_all(only: Option<Mutant>, jobs: usize) -> anyhow::Result<bool> {
    let mut all_caught = true;
    println!("{:<24} {:<10} {:>12} {:>8}", "mutant", "breaks", "at seed", "within");
    for mutant in Mutant::value_variants().iter().copied().filter(|mutant| only.is_none_or(|only| only == *mutant)) {
        let (may_break, within) = mutant.expected();
        let caught = wait_for(first_caught(mutant, within, jobs))??;
        match caught {
            Some((seed, broken)) if may_break.contains(&broken.as_str()) => {
                println!("{:<24} {broken:<10} {seed:>12} {within:>8}", mutant.name());
            }
            Some((seed, broken)) => {
                all_caught = false;
                println!("{:<24} {broken:<10} {seed:>12} {within:>8}  not one of {may_break:?}", mutant.name());
            }
            None => {
                all_caught = false;
                println!("{:<24} {:<10} {:>12} {within:>8}  ESCAPED", mutant.name(), "nothing", "-");
            }
        }
    }
    Ok(all_caught)
}

/// The first seed at which it breaks what it may break, else the first at which it breaks anything.
async fn first_caught(mutant: Mutant, within: u64, jobs: usize) -> anyhow::Result<Option<(u64, String)>> {
    let shape = &Shape { mutant: Some(mutant), faults: mutant.faults(), ..Shape::swarm() };
    let runs = (FIRST_SEED..FIRST_SEED + within).map(|seed| async move {
        let outcome = run_apart(&shape.settings(seed, None)).await?;
        anyhow::Ok((seed, outcome.broken))
    });
    // In the order of seeds, so that the table is the same each time.
    let mut runs = futures::stream::iter(runs).buffered(jobs.max(1));
    let mut other = None;
    while let Some(outcome) = runs.next().await {
        let (seed, Some(broken)) = outcome? else { continue };
        if mutant.expected().0.contains(&broken.as_str()) {
            return Ok(Some((seed, broken)));
        }
        // A replica that was restarted breaks another promise than the one that is meant, maybe, and sooner.
        other.get_or_insert((seed, broken));
    }
    Ok(other)
}

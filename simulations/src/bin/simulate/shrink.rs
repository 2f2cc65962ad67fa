//! The smallest plan of faults that still breaks what a seed breaks.
//!
//! First whole kinds of fault go, then single ones, by delta debugging (Zeller and Hildebrandt,
//! "Simplifying and isolating failure-inducing input", IEEE TSE 28(2), 2002), then minutes, then sites.
//! A fault that is left out changes no other: each has a number and a random stream of its own. Fewer
//! sites do change them all, so what remains is tried again. A try is a process; only one that breaks
//! the same invariant counts.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::bail;
use futures::StreamExt as _;
use maillage_simulations::{Fault, Settings};

use crate::Shape;
use crate::batch::{Outcome, PlanSeen, run_apart, wait_for};
use crate::show::replay;

/// Shrinks the plan of `seed`; prints what is left and the command that replays it. False when the seed
/// breaks nothing.
pub(crate) fn shrink(seed: u64, jobs: usize, shape: &Shape) -> anyhow::Result<bool> {
    wait_for(shrink_plan(shape.settings(seed, None), jobs.max(1)))?
}

async fn shrink_plan(settings: Settings, jobs: usize) -> anyhow::Result<bool> {
    let outcome = run_apart(&settings).await?;
    let Some(invariant) = outcome.broken.clone() else {
        println!("seed {} breaks nothing: {}", settings.seed, replay(&settings));
        return Ok(false);
    };
    if outcome.digest.is_empty() {
        bail!(
            "seed {} does not come to its end, so that nothing is known of its faults:\n{}",
            settings.seed,
            outcome.output
        );
    }
    println!("seed {} breaks {invariant} with {}", settings.seed, outcome.plan);
    let mut smallest = Smallest { settings, outcome, invariant, jobs, tries: AtomicUsize::new(0) };
    smallest.drop_kinds().await?;
    smallest.drop_faults().await?;
    let minutes = smallest.settings.minutes;
    smallest.lessen("minutes", minutes, |settings, minutes| settings.minutes = minutes).await?;
    let sites = u64::from(smallest.settings.sites);
    let to_sites = |settings: &mut Settings, sites| settings.sites = u32::try_from(sites).unwrap_or(u32::MAX);
    if smallest.lessen("sites", sites, to_sites).await? {
        smallest.drop_kinds().await?;
        smallest.drop_faults().await?;
    }
    smallest.print();
    Ok(true)
}

/// The smallest run so far that breaks the invariant.
struct Smallest {
    settings: Settings,
    outcome: Outcome,
    invariant: String,
    jobs: usize,
    tries: AtomicUsize,
}

impl Smallest {
    /// These settings, with only this much of the plan.
    fn with_plan(&self, throughout: &[Fault], numbers: Vec<u64>) -> Settings {
        let mut settings = self.settings.clone();
        let gone = self.outcome.plan.throughout.iter().filter(|fault| !throughout.contains(fault));
        settings.without.extend(gone);
        settings.only_faults = Some(numbers);
        settings
    }

    async fn drop_kinds(&mut self) -> anyhow::Result<()> {
        let PlanSeen { throughout, begun } = self.outcome.plan.clone();
        let mut kinds: Vec<Fault> = throughout.iter().copied().chain(begun.iter().map(|(_, kind)| *kind)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let of_kinds = |this: &Self, kinds: &[Fault]| {
            let numbers = begun.iter().filter(|(_, kind)| kinds.contains(kind)).map(|(number, _)| *number);
            this.with_plan(kinds, numbers.collect())
        };
        let least = self.minimize("kinds of fault", kinds, |kinds| of_kinds(self, kinds)).await?;
        self.keep(least);
        Ok(())
    }

    async fn drop_faults(&mut self) -> anyhow::Result<()> {
        let PlanSeen { throughout, begun } = self.outcome.plan.clone();
        let numbers = begun.iter().map(|(number, _)| *number).collect();
        let of_numbers = |numbers: &[u64]| self.with_plan(&throughout, numbers.to_vec());
        let least = self.minimize("single faults", numbers, of_numbers).await?;
        self.keep(least);
        Ok(())
    }

    /// Makes a number of the settings as small as it can be, by halves and then by ones. Whether it changed.
    async fn lessen(&mut self, what: &str, from: u64, set: impl Fn(&mut Settings, u64)) -> anyhow::Result<bool> {
        let mut least = from;
        loop {
            let values = smaller(least);
            let settings = values.iter().map(|value| {
                let mut settings = self.settings.clone();
                set(&mut settings, *value);
                settings
            });
            let Some((at, settings, outcome)) = self.first_broken(settings.collect()).await? else { break };
            (self.settings, self.outcome) = (settings, outcome);
            least = values.get(at).copied().unwrap_or(1);
        }
        println!("fewer {what}: {least} of {from}");
        Ok(least < from)
    }

    /// The first of these runs that breaks the invariant. Some at once, but the answer does not depend on
    /// which of them ends first.
    async fn first_broken(&self, tries: Vec<Settings>) -> anyhow::Result<Option<(usize, Settings, Outcome)>> {
        let runs = tries.into_iter().map(|settings| async {
            self.tries.fetch_add(1, Relaxed);
            let outcome = run_apart(&settings).await?;
            anyhow::Ok((settings, outcome))
        });
        let mut runs = futures::stream::iter(runs).buffered(self.jobs).enumerate();
        while let Some((at, run)) = runs.next().await {
            let (settings, outcome) = run?;
            // One that did not come to its end says nothing of its faults.
            if outcome.broken.as_ref() == Some(&self.invariant) && !outcome.digest.is_empty() {
                return Ok(Some((at, settings, outcome)));
            }
        }
        Ok(None)
    }

    /// The run with as few of `items` as it takes; `None` when it takes them all.
    async fn minimize<T: Clone>(
        &self,
        what: &str,
        items: Vec<T>,
        settings: impl Fn(&[T]) -> Settings,
    ) -> anyhow::Result<Option<(Settings, Outcome)>> {
        let (all, least) = (items.len(), RefCell::new(None));
        let left = minimize(items, async |candidates: &[Vec<T>]| {
            let tries = candidates.iter().map(|items| settings(items)).collect();
            let Some((at, settings, outcome)) = self.first_broken(tries).await? else { return Ok(None) };
            // Each that fails is smaller than the one before.
            least.replace(Some((settings, outcome)));
            Ok(Some(at))
        });
        println!("fewer {what}: {} of {all}", left.await?.len());
        Ok(least.into_inner())
    }

    fn keep(&mut self, least: Option<(Settings, Outcome)>) {
        if let Some(least) = least {
            (self.settings, self.outcome) = least;
        }
    }

    fn print(&self) {
        let Self { settings, outcome, invariant, tries, .. } = self;
        println!("smallest after {} runs: {invariant} with {}", tries.load(Relaxed) + 1, outcome.plan);
        for line in outcome.output.lines().filter(|line| line.contains("VIOLATION")).take(1) {
            println!("{}", line.chars().take(400).collect::<String>());
        }
        println!("  again: {}", replay(settings));
    }
}

/// Numbers below `value` to try, the boldest first.
fn smaller(value: u64) -> Vec<u64> {
    let mut values = vec![1, value / 2, value.saturating_sub(1)];
    values.retain(|smaller| (1..value).contains(smaller));
    values.sort_unstable();
    values.dedup();
    values
}

/// A least part of `items` that still fails: without any one of it, it does not. `first` says which of
/// some candidates is the first to fail; all of `items` is known to.
async fn minimize<T: Clone>(
    mut items: Vec<T>,
    first: impl AsyncFn(&[Vec<T>]) -> anyhow::Result<Option<usize>>,
) -> anyhow::Result<Vec<T>> {
    if items.is_empty() || first(&[Vec::new()]).await?.is_some() {
        return Ok(Vec::new());
    }
    let mut parts = 2;
    while items.len() > 1 {
        let size = items.len().div_ceil(parts);
        let mut candidates: Vec<Vec<T>> = items.chunks(size).map(<[T]>::to_vec).collect();
        let chunks = candidates.len();
        if chunks > 2 {
            let rest = |at: usize| {
                let end = (at + size).min(items.len());
                [items.get(..at).unwrap_or_default(), items.get(end..).unwrap_or_default()].concat()
            };
            candidates.extend((0..items.len()).step_by(size).map(rest));
        }
        match first(&candidates).await? {
            Some(at) => {
                items = candidates.swap_remove(at);
                // A rest was known not to fall apart into fewer parts.
                parts = if at < chunks { 2 } else { (parts - 1).max(2) };
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(items.len()),
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Minimizes 1..=20 where what fails is any set that has all of `culprits`. The result, and the tries.
    fn minimized(culprits: &[u64]) -> (Vec<u64>, usize) {
        let tries = std::cell::Cell::new(0);
        let least = minimize((1..=20).collect(), async |candidates: &[Vec<u64>]| {
            let fails = |items: &Vec<u64>| culprits.iter().all(|culprit| items.contains(culprit));
            tries.set(tries.get() + candidates.len());
            Ok(candidates.iter().position(fails))
        });
        (wait_for(least).expect("runtime").expect("no error"), tries.get())
    }

    #[test]
    fn what_is_left_is_just_what_it_takes() {
        for culprits in [&[][..], &[1], &[20], &[7, 8], &[1, 20], &[2, 9, 17], &[4, 5, 6, 7, 11]] {
            assert_eq!(minimized(culprits).0, culprits);
        }
        let all: Vec<u64> = (1..=20).collect();
        assert_eq!(minimized(&all).0, all);
    }

    #[test]
    fn a_single_culprit_is_found_in_few_tries() {
        for culprit in 1..=20 {
            let (_, tries) = minimized(&[culprit]);
            assert!(tries <= 12, "{culprit} took {tries}");
        }
    }

    #[test]
    fn smaller_numbers_are_tried_the_boldest_first() {
        assert!(smaller(1).is_empty());
        assert_eq!(smaller(2), [1]);
        assert_eq!(smaller(5), [1, 2, 4]);
        assert_eq!(smaller(24), [1, 12, 23]);
    }
}

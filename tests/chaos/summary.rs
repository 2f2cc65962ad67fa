//! What a run did, in a page.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::history::{Act, Op, Told};
use crate::world::World;

/// Prints the summary.
pub(crate) fn summarise(world: &World, settled: Duration, undecided: usize) {
    let (ops, counts) = (world.history.ops(), world.history.counts());
    let attempts: u64 = ops.iter().map(|op| u64::from(op.attempts)).sum();
    println!(
        "  {} operations in {attempts} requests; finished {:.0} s after the faults",
        ops.len(),
        settled.as_secs_f64()
    );
    println!("  told:     {}", list(&outcomes(&ops)));
    let (faults, events): (BTreeMap<_, _>, BTreeMap<_, _>) =
        counts.into_iter().partition(|(name, _)| name.starts_with("fault "));
    let faults = faults.into_iter().map(|(name, count)| (name["fault ".len()..].to_owned(), count)).collect();
    println!("  faults:   {}", list(&faults));
    println!("  happened: {}", list(&events));
    let (wait, gap) = (longest_wait(&ops), longest_gap(&ops));
    println!("  the longest wait of one claim was {wait:.1} s; the longest time in which none was answered {gap:.1} s");
    let used = world.living().into_iter().filter_map(|site| Some((site.name.to_owned(), site.used_mib()?)));
    println!("  MiB on each disk: {}", list(&used.collect()));
    if undecided > 0 {
        println!("  {undecided} exams were too hard to decide");
    }
    let violations = world.history.violations();
    println!("  {} violations", violations.len());
    for violation in violations.iter().take(20) {
        println!("  VIOLATION {}: {}", violation.check, violation.what);
    }
}

fn list(counts: &BTreeMap<String, u64>) -> String {
    counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn outcomes(ops: &[Op]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for op in ops {
        let told = match &op.told {
            None => "nothing certain".to_owned(),
            Some(Told::Added { .. }) => "added".to_owned(),
            Some(Told::Granted { .. }) => "granted".to_owned(),
            Some(Told::Nothing) => "nothing waits".to_owned(),
            Some(Told::Held { .. }) => "held by another".to_owned(),
            Some(Told::WrongState { .. }) => "wrong state".to_owned(),
            Some(Told::Stale { .. }) => "stale".to_owned(),
            Some(Told::Done) => format!("{} done", op.act.name()),
            Some(Told::Shown { .. }) => "shown".to_owned(),
            Some(Told::Refused { code, .. }) => format!("refused: {code}"),
        };
        *counts.entry(told).or_default() += 1;
    }
    counts
}

/// The longest time from a claim's first request to its certain answer.
fn longest_wait(ops: &[Op]) -> f64 {
    let waits = ops.iter().filter(|op| matches!(op.act, Act::Claim { .. }));
    let waits = waits.filter_map(|op| Some(Duration::from_nanos(op.answer? - op.call)));
    waits.max().unwrap_or_default().as_secs_f64()
}

/// The longest time between two certain answers to claims.
fn longest_gap(ops: &[Op]) -> f64 {
    let mut answers: Vec<u64> =
        ops.iter().filter(|op| matches!(op.act, Act::Claim { .. })).filter_map(|op| op.answer).collect();
    answers.sort_unstable();
    let gaps = answers.windows(2).map(|pair| Duration::from_nanos(pair[1] - pair[0]));
    gaps.max().unwrap_or_default().as_secs_f64()
}

//! Many runs, each in a process of its own, some at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;
use futures::StreamExt as _;
use maillage_simulations::{Fault, Settings};

use crate::show::{PLAN, RESULT, plan, replay};
use crate::{Shape, shim};

/// Real time that a run may take before it counts as stuck: at least so much …
const STUCK_MIN: Duration = Duration::from_secs(600);
/// … and so much for each minute of one site; of sixteen sites one takes 1.4 s.
const STUCK_A_SITE_MINUTE: Duration = Duration::from_secs(20);

/// The faults that a run had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PlanSeen {
    /// Kinds that last for the whole run.
    pub(crate) throughout: Vec<Fault>,
    /// The others, by number.
    pub(crate) begun: Vec<(u64, Fault)>,
}

impl std::fmt::Display for PlanSeen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&plan(&self.throughout, &self.begun))
    }
}

impl PlanSeen {
    /// Reads what [`plan`] wrote; what it does not know is none.
    fn parse(text: &str) -> Self {
        let mut seen = Self::default();
        for word in text.split(' ') {
            let (number, name) = word.split_once(':').unwrap_or(("", word));
            match (number.parse(), Fault::from_str(name, false)) {
                (Ok(number), Ok(fault)) => seen.begun.push((number, fault)),
                (Err(_), Ok(fault)) => seen.throughout.push(fault),
                (_, Err(_)) => {}
            }
        }
        seen
    }
}

/// What another process said of its run.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    /// The trace's digest; empty when the run did not end.
    pub(crate) digest: String,
    /// The first broken invariant.
    pub(crate) broken: Option<String>,
    pub(crate) node_hours: f64,
    pub(crate) reached: BTreeMap<String, u64>,
    pub(crate) plan: PlanSeen,
    pub(crate) output: String,
}

/// A runtime for waiting on processes; nothing simulated runs in it.
pub(crate) fn wait_for<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    Ok(runtime.block_on(future))
}

pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// Runs `settings` in a process of its own.
pub(crate) async fn run_apart(settings: &Settings) -> anyhow::Result<Outcome> {
    run_as(&this_program()?, settings).await
}

/// … as `program`, which is a build of this one.
pub(crate) async fn run_as(program: &Path, settings: &Settings) -> anyhow::Result<Outcome> {
    let mut arguments = settings.arguments();
    arguments.extend(settings.trace.iter().map(|trace| format!("--trace={}", trace.display())));
    let site_minutes = settings.minutes.saturating_mul(u64::from(settings.sites));
    let stuck = STUCK_A_SITE_MINUTE.saturating_mul(u32::try_from(site_minutes).unwrap_or(u32::MAX));
    apart(program, settings.seed, &arguments, stuck.max(STUCK_MIN)).await
}

/// Runs a program with these arguments in a process of its own, for at most `limit` of real time.
pub(crate) async fn apart(program: &Path, seed: u64, arguments: &[String], limit: Duration) -> anyhow::Result<Outcome> {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let failed = |output: String| Outcome {
        seed,
        digest: String::new(),
        broken: Some("stuck".to_owned()),
        node_hours: 0.0,
        reached: BTreeMap::new(),
        plan: PlanSeen::default(),
        output,
    };
    let Ok(output) = tokio::time::timeout(limit, command.output()).await else {
        return Ok(failed(format!("no end after {limit:?}")));
    };
    let output = output.context("run a seed")?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.strip_prefix(RESULT));
    let Some((digest, rest)) = line.and_then(|line| line.split_once(' ')) else { return Ok(failed(text)) };
    let mut parts = rest.splitn(3, ' ');
    let broken = parts.next().filter(|first| *first != "none").map(str::to_owned);
    let node_hours = parts.next().and_then(|hours| hours.parse().ok()).unwrap_or(0.0);
    let pairs = parts.next().unwrap_or_default().split(';').filter_map(|pair| pair.split_once('='));
    let reached = pairs.filter_map(|(what, count)| Some((what.to_owned(), count.parse().ok()?))).collect();
    let plan = text.lines().find_map(|line| line.strip_prefix(PLAN)).map(PlanSeen::parse).unwrap_or_default();
    Ok(Outcome { seed, digest: digest.to_owned(), broken, node_hours, reached, plan, output: text })
}

/// What a sweep of so many swarms must reach, or it does not test what it is said to: each is in every third run at
/// least …
const USUAL_FROM: u64 = 40;
const USUAL: &[&str] = &[
    "a claim was refused because another holds the exam",
    "a command took more than three tries",
    "a command was refused for want of a quorum",
    "a connection broke with streams on it",
    "a disk was searched for purged images",
    "a follower's log conflicted",
    "a node started with images still to be coded",
    "a node that had acknowledged entries lost power",
    "a repeated command was answered",
    "a report under a lost claim was refused",
    "a request under another name was refused",
    "a request under no name was refused",
    "a sender was cut in mid-study",
    "a spent token let nobody in",
    "a storage commitment was given",
    "a study was retrieved",
    "a text was kept for later without a quorum",
    "a vote was granted",
    "administration was refused on the port",
    "all copies were made",
    "an error named nobody",
    "an exam was taken by break glass",
    "an exam was taken over",
    "an image came after its study was purged",
    "an overheard request let nobody in",
    "another site's page was refused a change",
    "images waited in a landing",
    "images were purged when their time was over",
    "monitoring was told no names",
    "the leader changed",
    "what another site's page had read was kept from it",
    "who is no gateway was told of no reports",
];
/// … or in every tenth.
const RARE_FROM: u64 = 300;
const RARE: &[&str] = &[
    "a copy was given up",
    "a disk stalled",
    "a gateway dropped what was purged",
    "a gateway had a report delivered",
    "a gateway told nothing of what centres have",
    "a gateway was given its own hospital's reports alone",
    "a gateway's disk was searched for what left its spool",
    "a gateway's token made no centre",
    "a hospital was held to its rate",
    "a layout was applied",
    "a legal hold kept images",
    "a legal hold kept images beyond their time",
    "a lost site was replaced",
    "a node was upgraded under way",
    "a pack's torn tail was cut",
    "a peer served wrong bytes",
    "a prior was prefetched",
    "a reader opened a prior",
    "a rotten disk was repaired",
    "a sender had used up its day",
    "a site joined among faults",
    "a snapshot was sent",
    "a write met a full disk",
    "all nodes lost power at once",
    "an fsync failed",
    "an image came to a gateway after its study was purged",
    "an index was made anew from the packs",
    "an unsynced write was torn",
    "images came under a contract",
    "other bytes under a known UID were refused",
];

/// The sums of a sweep.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) failed: Vec<u64>,
    pub(crate) node_hours: f64,
    /// In how many runs each rare path was reached, and how often in all.
    reached: BTreeMap<String, (u64, u64)>,
}

impl Tally {
    /// Adds one run.
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.node_hours += outcome.node_hours;
        for (what, times) in &outcome.reached {
            let sum = self.reached.entry(what.clone()).or_default();
            *sum = (sum.0 + 1, sum.1 + times);
        }
        if outcome.broken.is_some() {
            self.failed.push(outcome.seed);
        }
    }

    /// What this many swarms should have reached, and did not.
    fn unreached(&self, seeds: u64) -> Vec<&'static str> {
        let usual = USUAL.iter().filter(|_| seeds >= USUAL_FROM);
        let all = usual.chain(RARE.iter().filter(|_| seeds >= RARE_FROM));
        all.copied().filter(|what| !self.reached.contains_key(*what)).collect()
    }

    /// Prints the rare paths, and puts the failed seeds in order.
    pub(crate) fn show(&mut self, runs: &str) {
        println!("rare paths: in how many {runs}, and how often in all");
        for (what, (runs, times)) in &self.reached {
            println!("  {runs:>5} {times:>8}  {what}");
        }
        self.failed.sort_unstable();
    }
}

/// Runs many seeds; prints those that fail and how to repeat each, then the sums.
pub(crate) fn sweep(seeds: Range<u64>, jobs: usize, shape: &Shape) -> anyhow::Result<bool> {
    let start = shim::real_now();
    let count = seeds.end - seeds.start;
    let mut tally = Tally::default();
    wait_for(async {
        let runs = seeds.map(|seed| async move { run_apart(&shape.settings(seed, None)).await });
        let mut runs = futures::stream::iter(runs).buffer_unordered(jobs.max(1));
        while let Some(outcome) = runs.next().await {
            let outcome = outcome?;
            tally.add(&outcome);
            if let Some(broken) = &outcome.broken {
                println!("seed {} breaks {broken}: {}", outcome.seed, replay(&shape.settings(outcome.seed, None)));
                for line in outcome.output.lines().filter(|line| line.contains("VIOLATION")).take(3) {
                    println!("  {}", line.chars().take(400).collect::<String>());
                }
            }
        }
        anyhow::Ok(())
    })??;
    tally.show("seeds");
    let Tally { failed, node_hours, .. } = &tally;
    let took = (shim::real_now() - start).as_secs_f64();
    println!(
        "{count} seeds, {} failed {failed:?}; {node_hours:.1} simulated node-hours in {took:.0} s: {:.2} a second",
        failed.len(),
        node_hours / took.max(0.001)
    );
    let unreached = if shape.is_whole_swarm() { tally.unreached(count) } else { Vec::new() };
    for what in &unreached {
        println!("in none of {count} seeds: {what}");
    }
    Ok(failed.is_empty() && unreached.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sweep_must_reach_is_missed() {
        let reached = USUAL.iter().map(|what| ((*what).to_owned(), (1, 1))).collect();
        let tally = Tally { reached, ..Tally::default() };
        assert_eq!(tally.unreached(RARE_FROM), RARE);
        assert_eq!(tally.unreached(RARE_FROM - 1), [""; 0]);
        assert_eq!(Tally::default().unreached(USUAL_FROM), USUAL);
        assert_eq!(Tally::default().unreached(USUAL_FROM - 1), [""; 0], "a few seeds reach what they reach");
    }

    #[test]
    fn a_plan_is_read_as_it_is_printed() {
        let whole = PlanSeen {
            throughout: vec![Fault::CrashVoting, Fault::LossyLinks],
            begun: vec![(3, Fault::Crash), (17, Fault::OneWay)],
        };
        for seen in [whole, PlanSeen::default()] {
            assert_eq!(PlanSeen::parse(&seen.to_string()), seen);
        }
    }
}

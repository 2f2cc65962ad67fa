//! Days of the service: the report of one, and many in a row.
//!
//! A process has one world, so each day on the mesh runs in a process of its own, which leaves its records
//! in a file.

#![expect(clippy::disallowed_methods, reason = "records of finished runs, outside every simulated disk")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::StreamExt as _;
use maillage_simulations::day::drive::{self, DayReport, DaySettings};
use maillage_simulations::day::model::Day;
use maillage_simulations::day::record::Run;
use maillage_simulations::day::report::{Arm, Made, Report, write_html};
use maillage_simulations::day::scenario::Scenario;
use maillage_simulations::day::{MINUTE_MS, central};

use crate::batch::{Outcome, Tally, apart, this_program, wait_for};
use crate::shim;
use crate::show::{result, seen};

/// Real time that one day may take before it counts as stuck: an unoptimised build needs the most of it.
const STUCK: Duration = Duration::from_secs(4 * 3600);

/// What a day looks like, besides its seed.
#[derive(Debug, Clone, Args)]
pub(crate) struct DayShape {
    /// A day of a weekend rather than a weekday.
    #[arg(long)]
    weekend: bool,
    /// What fails: none, bad-night, centre-lost, cloud-lost or territory-cut.
    #[arg(long, default_value = "bad-night")]
    scenario: String,
    /// Only what is requested in the first so many hours.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=24))]
    hours: u64,
}

impl DayShape {
    pub(crate) fn settings(&self, seed: u64, faults: bool, trace: Option<PathBuf>) -> DaySettings {
        let Self { weekend, scenario, hours } = self.clone();
        DaySettings { seed, weekend, scenario, hours, faults, trace }
    }
}

/// The one command that repeats a day on the mesh.
fn replay(settings: &DaySettings) -> String {
    format!("cargo sim {}", settings.arguments().join(" "))
}

/// Plays a day on the mesh in this process; leaves its records at `records`, if asked to.
pub(crate) fn mesh(settings: &DaySettings, records: Option<&Path>) -> anyhow::Result<bool> {
    shim::fix_addresses();
    crate::log_if_asked();
    let start = shim::real_now();
    let owned = settings.clone();
    let report = crate::simulated(settings.seed, move || drive::play(&owned))?.context("play the day")?;
    show(settings, &report, shim::real_now() - start);
    if let Some(path) = records {
        let json = serde_json::to_vec(&Kept { ended_ms: report.run.ended_ms, records: report.run.records })?;
        std::fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(report.violations.is_empty())
}

/// What is kept of a run between processes: its samples follow from it.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    ended_ms: u64,
    records: Vec<maillage_simulations::day::record::Record>,
}

fn show(settings: &DaySettings, report: &DayReport, took: Duration) {
    let [exams, completed, instances, histories, compared] = report.counts;
    println!("day {} of {}, faults {}", settings.seed, settings.scenario, DayReport::faults(settings));
    println!(
        "  {exams} exams, {completed} completed, {instances} instances; {histories} histories linearizable or not, {compared} states compared"
    );
    seen(&report.reached, &report.violations, &replay(settings));
    let hours = report.simulated.as_secs_f64() / 3600.0 * f64::from(report.nodes);
    println!(
        "  {} events, {} polls, {:.1} simulated h of {} nodes in {:.1} s: {:.2} node-hours a second",
        report.events,
        report.polls,
        report.simulated.as_secs_f64() / 3600.0,
        report.nodes,
        took.as_secs_f64(),
        hours / took.as_secs_f64().max(0.001),
    );
    result(&report.digest, &report.violations, hours, &report.reached);
}

/// Plays a day in four runs and writes the page that compares them.
pub(crate) fn report(seed: u64, shape: &DayShape, out: &Path) -> anyhow::Result<bool> {
    let harmed = shape.settings(seed, false, None);
    let calm = DaySettings { scenario: "none".to_owned(), ..harmed.clone() };
    let day = harmed.day();
    let scenario = Scenario::named(&shape.scenario, &day);
    let scenario = scenario.with_context(|| format!("scenarios are {}", Scenario::NAMES.join(", ")))?;
    let start = shim::real_now();
    let (calm, harmed) = wait_for(async { futures::join!(on_mesh(&calm, &day), on_mesh(&harmed, &day)) })?;
    let ((calm_outcome, calm), (harmed_outcome, harmed)) = (calm?, harmed?);
    let took = (shim::real_now() - start).as_secs_f64();
    for outcome in [&calm_outcome, &harmed_outcome] {
        print!("{}", outcome.output);
    }
    let (Some(calm), Some(harmed)) = (calm, harmed) else { return Ok(false) };
    let runs = [calm, harmed, central::run(&day, &Scenario::none()), central::run(&day, &scenario)];
    let made = Made {
        command: command(seed, shape, out),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node_hours: calm_outcome.node_hours + harmed_outcome.node_hours,
        wall_seconds: took,
        notes: notes(&calm_outcome, &harmed_outcome),
    };
    let report = Report::new(&day, &scenario, runs, made).context("compare the runs")?;
    write_html(&report, out).with_context(|| format!("write {}", out.display()))?;
    for arm in Arm::ALL {
        let figures = report.figures(arm);
        let minutes = |summary: Option<maillage_simulations::day::statistics::Summary>| {
            let minute = MINUTE_MS as f64;
            summary.map_or((0.0, 0.0), |summary| (summary.mean_ms / minute, summary.max_ms as f64 / minute))
        };
        let ((turnaround, _), (mean, max)) = (minutes(figures.turnaround), minutes(figures.from_scan));
        println!(
            "{:<20} {} reported, {} unread; turnaround {turnaround:.1} min; from the scan {mean:.1} min, at most {max:.0}",
            arm.label(),
            figures.reported,
            figures.unread,
        );
    }
    println!("{}", out.display());
    Ok(calm_outcome.broken.is_none() && harmed_outcome.broken.is_none())
}

fn command(seed: u64, shape: &DayShape, out: &Path) -> String {
    let name = out.file_name().map_or_else(|| "day.html".into(), |name| name.to_string_lossy());
    let weekend = if shape.weekend { " --weekend" } else { "" };
    let hours = if shape.hours == 24 { String::new() } else { format!(" --hours {}", shape.hours) };
    format!("cargo sim day --seed {seed} --scenario {}{weekend}{hours} --out {name}", shape.scenario)
}

fn notes(calm: &Outcome, harmed: &Outcome) -> Vec<(String, String)> {
    let paths = |outcome: &Outcome| {
        let told = outcome.reached.iter().map(|(what, count)| format!("{what} ({count})"));
        told.collect::<Vec<_>>().join(", ")
    };
    vec![
        (
            "The mesh".to_owned(),
            "Seventeen production nodes, whole, under simulated time, disks and network: requests, claims and \
             reports by HTTP, images by C-STORE, Raft, sessions, copies. The first five centres vote. A reader \
             sees an exam in the worklist and claims it half a second to eight seconds later."
                .to_owned(),
        ),
        (
            "Checked".to_owned(),
            "That claims are linearizable, tokens rise, nothing acknowledged is lost, replicas agree, every copy is \
             made and every study can be had."
                .to_owned(),
        ),
        ("Digests".to_owned(), format!("{} without failure, {} with the failures", calm.digest, harmed.digest)),
        ("On the way, with the failures".to_owned(), paths(harmed)),
    ]
}

/// Plays a day in a process of its own; its run, when it came to its end.
async fn on_mesh(settings: &DaySettings, day: &Day) -> anyhow::Result<(Outcome, Option<Run>)> {
    let name = format!("maillage-day-{}-{}-{}.json", std::process::id(), settings.seed, settings.scenario);
    let path = std::env::temp_dir().join(name);
    let mut arguments = settings.arguments();
    arguments.push(format!("--records={}", path.display()));
    let outcome = apart(&this_program()?, settings.seed, &arguments, STUCK).await?;
    let Ok(json) = std::fs::read(&path) else { return Ok((outcome, None)) };
    std::fs::remove_file(&path).context("remove a run's records")?;
    let Kept { ended_ms, records } = serde_json::from_slice(&json).context("read a run's records")?;
    let mut run = Run { records, ended_ms, ..Run::default() };
    run.sample(day, MINUTE_MS);
    Ok((outcome, Some(run)))
}

/// Plays many days, each with a mixture of faults besides its scenario; prints those that fail.
pub(crate) fn sweep(seeds: Range<u64>, jobs: usize, shape: &DayShape) -> anyhow::Result<bool> {
    let start = shim::real_now();
    let count = seeds.end - seeds.start;
    let mut tally = Tally::default();
    wait_for(async {
        let days = seeds.map(|seed| async move {
            let settings = shape.settings(seed, true, None);
            anyhow::Ok((apart(&this_program()?, seed, &settings.arguments(), STUCK).await?, settings))
        });
        let mut days = futures::stream::iter(days).buffer_unordered(jobs.max(1));
        while let Some(played) = days.next().await {
            let (outcome, settings) = played?;
            tally.add(&outcome);
            let rate = outcome.output.lines().find(|line| line.contains("node-hours a second")).unwrap_or_default();
            println!("day {}: {}; {}", outcome.seed, outcome.broken.as_deref().unwrap_or("sound"), rate.trim());
            if outcome.broken.is_some() {
                println!("  again: {}", replay(&settings));
                for line in outcome.output.lines().filter(|line| line.contains("VIOLATION")).take(3) {
                    println!("  {}", line.trim().chars().take(600).collect::<String>());
                }
            }
        }
        anyhow::Ok(())
    })??;
    tally.show("days");
    let Tally { failed, node_hours, .. } = &tally;
    let took = (shim::real_now() - start).as_secs_f64();
    println!(
        "{count} days, {} failed {failed:?}; {node_hours:.0} simulated node-hours in {took:.0} s: {:.2} a second",
        failed.len(),
        node_hours / took.max(0.001)
    );
    Ok(failed.is_empty())
}

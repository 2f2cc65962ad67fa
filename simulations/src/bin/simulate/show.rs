//! What a run prints: for people, and one line that the other commands read.

use std::time::Duration;

use maillage_simulations::{Fault, Report, Settings};

/// How the line for other commands begins.
pub(crate) const RESULT: &str = "result ";

/// How the line of the faults that were done begins.
pub(crate) const PLAN: &str = "plan ";

/// The faults of a run: kinds that lasted throughout, then the others with their numbers.
pub(crate) fn plan(throughout: &[Fault], begun: &[(u64, Fault)]) -> String {
    let throughout = throughout.iter().map(|fault| fault.name());
    let begun = begun.iter().map(|(number, fault)| format!("{number}:{}", fault.name()));
    let words: Vec<String> = throughout.chain(begun).collect();
    if words.is_empty() { "no fault".to_owned() } else { words.join(" ") }
}

/// The one command that repeats a run.
pub(crate) fn replay(settings: &Settings) -> String {
    format!("cargo sim {}", settings.arguments().join(" "))
}

/// Prints what a run showed.
pub(crate) fn report(settings: &Settings, report: &Report, took: Duration) {
    let [exams, completed, instances, histories, compared] = report.counts;
    println!("seed {} faults {}", settings.seed, report.faults);
    println!(
        "  {exams} exams, {completed} completed, {instances} instances; {histories} histories linearizable or not, {compared} states compared"
    );
    println!("  read to the end {:.1} s after the last fault", report.recovered.as_secs_f64());
    for (what, count) in &report.reached {
        println!("  {count:>7} x {what}");
    }
    for violation in &report.violations {
        println!("  VIOLATION {} at {:.3} s: {}", violation.invariant, violation.at.as_secs_f64(), violation.detail);
    }
    if !report.violations.is_empty() {
        println!("  again: {}", replay(settings));
    }
    let hours = report.simulated.as_secs_f64() / 3600.0 * f64::from(settings.sites);
    println!(
        "  {} events, {} polls, {:.0} simulated s in {:.2} s: {:.2} node-hours a second",
        report.events,
        report.polls,
        report.simulated.as_secs_f64(),
        took.as_secs_f64(),
        hours / took.as_secs_f64().max(0.001),
    );
    let begun: Vec<(u64, Fault)> = report.begun.iter().map(|begun| (begun.number, begun.fault)).collect();
    println!("{PLAN}{}", plan(&report.throughout, &begun));
    let first = report.violations.first().map_or("none", |violation| violation.invariant);
    let reached: Vec<String> = report.reached.iter().map(|(what, count)| format!("{what}={count}")).collect();
    println!("{RESULT}{} {first} {hours:.5} {}", report.digest, reached.join(";"));
}

//! What a run prints: for people, and one line that the other commands read.

use std::collections::BTreeMap;
use std::time::Duration;

use maillage_simulations::{Fault, Report, Settings, Violation};

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

/// Prints the rare paths that a run reached and what it broke, with the command that repeats it.
pub(crate) fn seen(reached: &BTreeMap<&'static str, u64>, violations: &[Violation], replay: &str) {
    for (what, count) in reached {
        println!("  {count:>7} x {what}");
    }
    for violation in violations {
        println!("  VIOLATION {} at {:.3} s: {}", violation.invariant, violation.at.as_secs_f64(), violation.detail);
    }
    if !violations.is_empty() {
        println!("  again: {replay}");
    }
}

/// Prints the line that a sweep reads of a run.
pub(crate) fn result(digest: &str, violations: &[Violation], hours: f64, reached: &BTreeMap<&'static str, u64>) {
    let first = violations.first().map_or("none", |violation| violation.invariant);
    let reached: Vec<String> = reached.iter().map(|(what, count)| format!("{what}={count}")).collect();
    println!("{RESULT}{digest} {first} {hours:.5} {}", reached.join(";"));
}

/// Prints what a run showed.
pub(crate) fn report(settings: &Settings, report: &Report, took: Duration) {
    let [exams, completed, instances, histories, compared] = report.counts;
    println!("seed {} faults {}", settings.seed, report.faults);
    println!(
        "  {exams} exams, {completed} completed, {instances} instances; {histories} histories linearizable or not, {compared} states compared"
    );
    println!("  read to the end {:.1} s after the last fault", report.recovered.as_secs_f64());
    seen(&report.reached, &report.violations, &replay(settings));
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
    result(&report.digest, &report.violations, hours, &report.reached);
}

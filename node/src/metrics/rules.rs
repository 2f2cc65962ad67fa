//! The alert rules that are shipped: what they name is what nodes export.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::gateway::Counts;
use crate::outbox;

const RULES: &str = include_str!("../../../packaging/maillage.rules.yml");

/// The documents of a centre and of a gateway of which everything was counted once.
fn documents() -> [String; 2] {
    let outbox = outbox::Counts::default().by_state().into();
    let scrape = Scrape { exams: vec![("waiting", 1)], outbox, ..Scrape::default() };
    let all = [Metrics::new(), Metrics::of_gateway()];
    for metrics in &all {
        metrics.rejected("dimse", "calling_unknown");
        metrics.http_request("/", "GET", 200);
        metrics.received("new", 1);
        metrics.coded(1, 1, 1);
        metrics.command("claim-next", "granted", Duration::from_millis(1));
        metrics.chunk_bytes_received("copy", 1);
        metrics.prefetch_claim(true);
        metrics.fetch_fault("slow");
        metrics.wrong_bytes_of(1);
        metrics.commitment("failed");
        metrics.outbox_settled("report", "accepted");
    }
    let instances = Counts::default().by_state().into();
    all[1].gateway().set(&gateway::Scrape { instances, ..gateway::Scrape::default() });
    [all[0].encode(&scrape), all[1].text()]
}

/// The metrics of a document, each with the names of its labels.
fn exported(document: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut all: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in document.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0));
        all.entry(name).or_default().extend(labels);
    }
    all
}

/// The metrics that an expression names, each with the names of the labels by which it selects.
fn named(expression: &str) -> Vec<(&str, Vec<&str>)> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = expression.match_indices("maillage_").map(|(at, _)| at);
    let starts = starts.filter(|at| !expression[..*at].ends_with(is_of_name));
    starts
        .map(|at| {
            let rest = &expression[at..];
            let (name, behind) = rest.split_at(rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()));
            let selects = behind.strip_prefix('{').map_or("", |inner| inner.split_once('}').expect("closed").0);
            let labels = selects.split(',').filter_map(|label| Some(label.split_once('=')?.0));
            (name, labels.collect())
        })
        .collect()
}

/// Each rule's name and expression.
fn rules() -> Vec<(&'static str, &'static str)> {
    let mut rules: Vec<(&str, &str)> = Vec::new();
    let mut alert = None;
    for line in RULES.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            assert_eq!(alert.replace(name), None, "a rule without an expression, before {name}");
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            rules.push((alert.take().expect("an expression of a rule"), expression));
        }
    }
    assert_eq!(alert, None);
    rules
}

#[test]
fn every_metric_that_an_alert_names_is_exported_with_the_labels_by_which_it_selects() {
    let documents = documents();
    let [centre, gateway] = [exported(&documents[0]), exported(&documents[1])];
    let (rules, mut names) = (rules(), BTreeSet::new());
    assert!(rules.len() >= 20, "{}", rules.len());
    for (alert, expression) in &rules {
        assert!(alert.starts_with("Maillage") && names.insert(alert), "{alert}");
        let own = if alert.starts_with("MaillageGateway") { &gateway } else { &centre };
        let metrics = named(expression);
        assert!(!metrics.is_empty() || expression.starts_with("up{"), "{alert} says nothing of ours: {expression}");
        for (metric, labels) in metrics {
            let exported = own.get(metric).unwrap_or_else(|| panic!("{alert}: {metric} is not exported"));
            for label in labels {
                assert!(exported.contains(label), "{alert}: {metric} has no label {label}");
            }
        }
        for state in ["waiting", "unacknowledged", "rejected"] {
            let selects = format!("{{state=\"{state}\"}}");
            assert!(!expression.contains(&selects) || documents.iter().any(|own| own.contains(&selects)), "{alert}");
        }
    }
}

#[test]
fn the_table_of_alerts_in_the_manual_is_what_the_file_has() {
    const MANUAL: &str = include_str!("../../../docs/operations.md");
    let (_, table) = MANUAL.split_once("| alert | expression | for |").expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).count();
    let of_centres = rules().iter().filter(|(alert, _)| !alert.starts_with("MaillageGateway")).count();
    assert_eq!(rows, of_centres);
}

#[test]
fn names_in_expressions_are_found() {
    let found = named("abs(maillage_a_b) > 2 and on (x) rate(maillage_c_total{l=\"maillage\",m=~\"x|y\"}[5m]) > 1");
    assert_eq!(found, [("maillage_a_b", vec![]), ("maillage_c_total", vec!["l", "m"])]);
}

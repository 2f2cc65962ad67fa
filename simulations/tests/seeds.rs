//! A handful of seeds, each in a process of its own: what `cargo test` covers of the simulation.
//! Sweeps are by command.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulate")).args(arguments).output().expect("start the simulator")
}

fn assert_passes(arguments: &[&str]) -> String {
    let output = simulate(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn a_mesh_under_a_swarm_of_faults_keeps_its_promises() {
    for seed in ["1", "2"] {
        let text = assert_passes(&["run", "--seed", seed, "--minutes", "1", "--sites", "3"]);
        assert!(text.contains("completed"), "{text}");
    }
}

#[test]
fn a_calm_mesh_reads_its_exams() {
    let text = assert_passes(&["run", "--seed", "1", "--minutes", "1", "--sites", "3", "--faults", "none"]);
    assert!(!text.contains(" 0 completed"), "work was done: {text}");
}

#[test]
fn the_same_seed_gives_the_same_events_in_two_processes() {
    assert_passes(&["check-determinism", "--seed", "3", "--minutes", "1", "--sites", "3"]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "many minutes in a debug build: .ci/run has it in release")]
fn an_hour_of_the_day_is_read_to_the_end_and_is_the_same_in_two_processes() {
    let day = ["mesh-day", "--seed", "3", "--hours", "1", "--scenario", "none"];
    let results = [(), ()].map(|()| {
        let text = assert_passes(&day);
        let line = text.lines().find_map(|line| line.strip_prefix("result "));
        line.and_then(|line| line.split(' ').next()).expect("a digest").to_owned()
    });
    assert_eq!(results[0], results[1]);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "minutes in a debug build: .ci/run has it in release")]
fn a_mesh_over_quic_keeps_its_promises_and_its_events_are_the_same_in_two_processes() {
    let over_quic = ["--minutes", "1", "--sites", "3", "--transport", "quic"];
    let text = assert_passes(&[&["run", "--seed", "1"], &over_quic[..]].concat());
    for reached in ["links were lossy", "a vote was granted", "a forwarded command was committed"] {
        assert!(text.contains(reached), "{reached}: {text}");
    }
    assert_passes(&[&["check-determinism", "--seed", "5"], &over_quic[..]].concat());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "minutes in a debug build: .ci/run has it in release")]
fn what_is_logged_changes_nothing_of_a_run() {
    let result = |filter: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
        command.args(["run", "--seed", "4", "--minutes", "1", "--sites", "3"]).stderr(Stdio::null());
        command.env_remove("RUST_LOG").envs(filter.map(|filter| ("RUST_LOG", filter)));
        let text = String::from_utf8_lossy(&command.output().expect("start the simulator").stdout).into_owned();
        text.lines().find(|line| line.starts_with("result ")).map(str::to_owned).unwrap_or_else(|| panic!("{text}"))
    };
    assert_eq!(result(None), result(Some("info,maillage=debug,maillage_consensus=debug")));
}

#[test]
#[cfg_attr(debug_assertions, ignore = "minutes in a debug build: .ci/run has it in release")]
fn a_plan_is_shrunk_to_what_it_takes() {
    let shape = ["--minutes=1", "--sites=3", "--faults=pause,crash,breaks,crash-voting", "--mutant=log-fsync-lies"];
    let text = assert_passes(&[&["shrink", "--seed", "2"], &shape[..]].concat());
    let before = text.lines().next().and_then(|line| line.strip_prefix("seed 2 breaks "));
    let (invariant, before) = before.and_then(|line| line.split_once(" with ")).expect("what there was before");
    let (_, replay) = text.rsplit_once("again: cargo sim ").unwrap_or_else(|| panic!("no replay: {text}"));
    let again = simulate(&replay.split_whitespace().collect::<Vec<_>>());
    let again = String::from_utf8_lossy(&again.stdout);
    assert!(again.contains(&format!("VIOLATION {invariant} ")), "{text}\n{again}");
    let plan = again.lines().find_map(|line| line.strip_prefix("plan ")).expect("a plan");
    let faults = |plan: &str| plan.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, left) = (faults(before), faults(plan));
    assert!(left.is_subset(&before) && left.len() < before.len(), "something was left out: {text}\n{plan}");
    assert!(left.iter().any(|fault| fault.contains("crash")), "it takes a loss of power: {plan}\n{text}");
}

#[test]
fn a_disk_that_lies_is_caught_and_its_replay_is_printed() {
    let arguments = ["run", "--seed", "1", "--minutes", "1", "--sites", "3", "--faults", "crash,crash-many"];
    let output = simulate(&[&arguments[..], &["--mutant", "directory-sync-dropped"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("VIOLATION") && text.contains("again: cargo sim run"), "{text}");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "minutes in a debug build: .ci/run has it in release")]
fn seeds_that_once_failed_pass() {
    for line in include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#')) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        if !arguments.is_empty() {
            assert_passes(&[&["run"], &arguments[..]].concat());
        }
    }
}

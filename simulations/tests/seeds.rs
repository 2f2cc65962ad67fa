//! A handful of seeds, each in a process of its own: what `cargo test` covers of the simulation.
//! Sweeps are by command.

use std::process::{Command, Output};

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
fn a_disk_that_lies_is_caught_and_its_replay_is_printed() {
    let arguments = ["run", "--seed", "1", "--minutes", "1", "--sites", "3", "--faults", "crash,crash-many"];
    let output = simulate(&[&arguments[..], &["--mutant", "directory-sync-dropped"]].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("VIOLATION") && text.contains("again: cargo sim run"), "{text}");
}

#[test]
fn seeds_that_once_failed_pass() {
    for line in include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#')) {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        if !arguments.is_empty() {
            assert_passes(&[&["run"], &arguments[..]].concat());
        }
    }
}

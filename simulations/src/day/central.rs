//! Today's system: the same day on one central server, as a discrete-event simulation.
//!
//! Waiting room and images are in one data centre, the scenario's cloud. While it is gone, nobody can send to
//! it, claim or report; a territory that is cut off is blind as well. The rules are kind to it: regulation
//! and scans go on by telephone, senders resume where they stopped, whoever has an exam open reads it to the
//! end and reports when the server is back. Readers choose as they do in the mesh: by urgency, then by how
//! long it has waited; nuclear medicine goes to nuclear physicians.

mod engine;
mod sending;

use engine::Engine;

use super::model::Day;
use super::record::Run;
use super::scenario::Scenario;
use super::{HORIZON_MS, MINUTE_MS};

/// Plays the day.
pub fn run(day: &Day, scenario: &Scenario) -> Run {
    let mut run = Run { records: sending::records(day, scenario), ended_ms: HORIZON_MS, ..Run::default() };
    Engine::new(day, scenario, &mut run.records).play(HORIZON_MS);
    run.sample(day, MINUTE_MS);
    run
}

#[cfg(test)]
mod tests;

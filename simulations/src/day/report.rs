//! The page: one self-contained HTML file that shows a day in four runs, side by side.
//!
//! No script, no font, no link: it opens from a disk years later, prints, and reads in light and dark. All text
//! goes through `maud`, which escapes it. Each plot stands in its own file; `plot` has what they share. A
//! run has one colour everywhere: blue is the mesh, orange the central server; pale and dashed is the day
//! without failure. The four differ in lightness too, so that no colour sense is needed.

mod centres;
mod distribution;
mod failures;
mod hours;
mod plot;
mod rooms;
mod style;
mod tables;
mod urgency;

use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figures::Figures;
use super::model::Day;
use super::record::{Run, RunError};
use super::scenario::Scenario;

/// Which of the four runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The mesh, nothing fails.
    MeshCalm,
    /// The mesh, with the scenario's failures.
    MeshHarmed,
    /// The central server, nothing fails.
    CentralCalm,
    /// The central server, with the scenario's failures.
    CentralHarmed,
}

impl Arm {
    /// All, in the order of `Report`'s runs.
    pub const ALL: [Self; 4] = [Self::MeshCalm, Self::MeshHarmed, Self::CentralCalm, Self::CentralHarmed];

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::MeshCalm => "mesh, no failure",
            Self::MeshHarmed => "mesh, failures",
            Self::CentralCalm => "central, no failure",
            Self::CentralHarmed => "central, failures",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::MeshCalm => "mesh calm",
            Self::MeshHarmed => "mesh harmed",
            Self::CentralCalm => "central calm",
            Self::CentralHarmed => "central harmed",
        }
    }
}

/// How the report was made, for whoever wants to make it again.
#[derive(Debug, Clone)]
pub struct Made {
    /// The command.
    pub command: String,
    /// Version of the software.
    pub version: String,
    /// Nodes × simulated hours of the mesh's runs.
    pub node_hours: f64,
    /// What these took on a real clock, in seconds.
    pub wall_seconds: f64,
    /// Whatever else is to be known of the runs: a term and what is said of it.
    pub notes: Vec<(String, String)>,
}

/// A day in four runs.
#[derive(Debug)]
pub struct Report<'a> {
    day: &'a Day,
    scenario: &'a Scenario,
    runs: [Run; 4],
    figures: [Figures; 4],
    made: Made,
}

impl<'a> Report<'a> {
    /// Of runs in the order of `Arm::ALL`, the second and fourth with the failures of `scenario`.
    ///
    /// # Errors
    /// When a run contradicts itself or the day.
    pub fn new(day: &'a Day, scenario: &'a Scenario, runs: [Run; 4], made: Made) -> Result<Self, RunError> {
        for run in &runs {
            run.check(day)?;
        }
        let figures = [0, 1, 2, 3].map(|at: usize| Figures::of(day, &runs[at]));
        Ok(Self { day, scenario, runs, figures, made })
    }

    /// The figures of a run.
    pub fn figures(&self, arm: Arm) -> &Figures {
        &self.figures[arm as usize]
    }

    fn run(&self, arm: Arm) -> &Run {
        &self.runs[arm as usize]
    }

    /// The page.
    pub fn html(&self) -> String {
        let title = format!("A day of the service: seed {}, {}", self.day.seed, self.kind_of_day());
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) }
                    // The only text that is not escaped is our own.
                    style { (PreEscaped(style::CSS)) }
                }
                body {
                    main {
                        (self.head())
                        (section("Key figures", tables::key_figures(self)))
                        (section("What fails, and when", failures::timeline(self)))
                        (section("How long it takes", distribution::panels(self)))
                        (section("Exams that nobody has in hand", rooms::panels(self)))
                        (section("Hour by hour", hours::turnaround(self)))
                        (section("By urgency", urgency::ranges(self)))
                        (section("By centre", centres::panels(self)))
                        (section("Is the roster the service's?", hours::roster(self)))
                        (section("Parameters and their sources", tables::parameters(self)))
                        (section("How this was made", tables::made(self)))
                    }
                }
            }
        };
        page.into_string()
    }

    fn kind_of_day(&self) -> &'static str {
        if self.day.weekend { "a day of a weekend" } else { "a weekday" }
    }

    fn head(&self) -> Markup {
        let day = self.day;
        html! {
            header {
                h1 { "A day of the service" }
                p.lead {
                    (day.centres.len()) " reading centres, " (day.hospitals.len()) " hospitals, "
                    (day.exams.len()) " exams requested on " (self.kind_of_day())
                    ". The same exams, read by the same people in the same time each, in four runs: on the mesh and \
                     on one central server, each without a failure and with the failures of “" (self.scenario.name)
                    "”."
                }
                ul.findings { @for finding in tables::findings(self) { li { (finding) } } }
                (plot::legend())
            }
        }
    }
}

fn section(title: &str, body: Markup) -> Markup {
    html! { section { h2 { (title) } (body) } }
}

/// Writes the page to a file.
///
/// # Errors
/// When the file can't be written.
#[expect(clippy::disallowed_methods, reason = "the simulator's own output, beside every simulated disk")]
pub fn write_html(report: &Report<'_>, path: &Path) -> std::io::Result<()> {
    std::fs::write(path, report.html())
}

#[cfg(test)]
mod tests;

//! What is said in words and numbers: findings, key figures, parameters, how it was made.

use maud::{Markup, html};

use super::plot::{duration, percent};
use super::{Arm, Report};
use crate::day::figures::Figures;
use crate::day::statistics::Summary;

/// What a reader in a hurry should know.
pub(super) fn findings(report: &Report<'_>) -> Vec<String> {
    let (mesh, central) = (report.figures(Arm::MeshHarmed), report.figures(Arm::CentralHarmed));
    let calm = report.figures(Arm::CentralCalm);
    let mean = |summary: Option<Summary>| summary.map_or_else(|| "–".to_owned(), |summary| duration(summary.mean_ms));
    let max =
        |summary: Option<Summary>| summary.map_or_else(|| "–".to_owned(), |summary| duration(summary.max_ms as f64));
    let late = |figures: &Figures| -> usize {
        figures.priorities.iter().map(|of| of.exams.saturating_sub(of.met_from_scan)).sum()
    };
    vec![
        format!(
            "With the failures, a radiology exam takes {} from scan to report on the mesh and {} on the central \
             server, on average; the longest takes {} and {}. Without failure the central server needs {} and {}.",
            mean(mesh.from_scan),
            mean(central.from_scan),
            max(mesh.from_scan),
            max(central.from_scan),
            mean(calm.from_scan),
            max(calm.from_scan),
        ),
        format!(
            "At the worst moment {} exams wait in nobody's hands on the mesh, {} on the central server.",
            mesh.waiting_max, central.waiting_max
        ),
        format!(
            "{} exams miss the target of their urgency, counted from the scan, on the mesh; {} on the central server. \
             Never reported: {} and {}.",
            late(mesh),
            late(central),
            mesh.unread,
            central.unread
        ),
    ]
}

/// The table of all four.
pub(super) fn key_figures(report: &Report<'_>) -> Markup {
    html! {
        div.scroll {
            table.runs {
                thead {
                    tr {
                        th {}
                        @for arm in Arm::ALL {
                            th.number { span class={ "swatch " (arm.class()) } {} (arm.label()) }
                        }
                    }
                }
                tbody {
                    (group("Exams"))
                    (row(report, "requested", |figures| figures.requested.to_string()))
                    (row(report, "refused by the regulator", |figures| figures.refused.to_string()))
                    (row(report, "reported", |figures| figures.reported.to_string()))
                    (row(report, "lost: accepted, never reported", |figures| figures.unread.to_string()))
                    (row(report, "claims returned from silent sites", |figures| figures.returned.to_string()))
                    (row(report, "read twice", |figures| figures.read_twice.to_string()))
                    (row(report, "waiting at a time, at most", |figures| figures.waiting_max.to_string()))
                    (summaries(report, "Radiology: end of the scan to report", |figures| figures.from_scan))
                    (summaries(report, "Radiology: turnaround (images received to report)", |figures| {
                        figures.turnaround
                    }))
                    (summaries(report, "Radiology: ready to first claim (wait)", |figures| figures.wait))
                    (summaries(report, "Nuclear medicine: images received to report", |figures| figures.nuclear))
                    (group("Target met, from the end of the scan"))
                    @for (at, of) in report.figures(Arm::MeshCalm).priorities.iter().enumerate() {
                        @let name = format!("{} ({})", of.priority, target(of.priority.target_ms()));
                        (row(report, &name, |figures| {
                            percent(figures.priorities[at].met_from_scan, figures.priorities[at].exams)
                        }))
                    }
                }
            }
        }
    }
}

fn target(ms: u64) -> String {
    let minutes = ms / 60_000;
    if minutes < 60 { format!("within {minutes} min") } else { format!("within {} h", minutes / 60) }
}

fn group(name: &str) -> Markup {
    html! { tr.group { th colspan="5" { (name) } } }
}

fn row(report: &Report<'_>, name: &str, value: impl Fn(&Figures) -> String) -> Markup {
    html! {
        tr {
            th { (name) }
            @for arm in Arm::ALL { td.number { (value(report.figures(arm))) } }
        }
    }
}

fn summaries(report: &Report<'_>, name: &str, of: impl Fn(&Figures) -> Option<Summary>) -> Markup {
    let show = |value: fn(Summary) -> f64| {
        let of = &of;
        move |figures: &Figures| of(figures).map_or_else(|| "–".to_owned(), |summary| duration(value(summary)))
    };
    html! {
        (group(name))
        (row(report, "mean", show(|summary| summary.mean_ms)))
        (row(report, "median", show(|summary| summary.p50_ms as f64)))
        (row(report, "90th percentile", show(|summary| summary.p90_ms as f64)))
        (row(report, "99th percentile", show(|summary| summary.p99_ms as f64)))
        (row(report, "longest", show(|summary| summary.max_ms as f64)))
    }
}

/// What the day was drawn from.
pub(super) fn parameters(report: &Report<'_>) -> Markup {
    html! {
        p {
            "“Service” is published by the service taken as a model, “published” by others, “assumption” is ours. \
             Hours are those of the mainland. The day begins with empty rooms at midnight, with the night shift on \
             duty."
        }
        div.scroll {
            table {
                thead { tr { th { "Parameter" } th { "Value" } th { "Basis" } th { "Source" } } }
                tbody {
                    @for row in report.day.parameters.rows() {
                        tr { th { (row.name) } td { (row.value) } td { (row.basis.as_str()) } td { (row.source) } }
                    }
                }
            }
        }
    }
}

/// How to make it again.
pub(super) fn made(report: &Report<'_>) -> Markup {
    let made = &report.made;
    let rate = if made.wall_seconds > 0.0 { made.node_hours / made.wall_seconds } else { 0.0 };
    html! {
        dl {
            dt { "Command" } dd { code { (made.command) } }
            dt { "Version" } dd { (made.version) }
            dt { "Seed" } dd { (report.day.seed) ", " (report.kind_of_day()) ", scenario " (report.scenario.name) }
            dt { "Rate" }
            dd {
                (format!("{:.0} simulated node-hours in {:.0} s: {rate:.1} node-hours a second", made.node_hours,
                    made.wall_seconds))
            }
            @for (term, what) in &made.notes { dt { (term) } dd { (what) } }
            dt { "The central server" }
            dd {
                "A discrete-event simulation of one data centre, kind to it: regulation and scans go on by telephone \
                 while it is gone, senders resume where they stopped, whoever has an exam open reads it to the end \
                 and reports later."
            }
            dt { "Percentiles" } dd { "Exact, by nearest rank: each is a duration that occurred." }
        }
    }
}

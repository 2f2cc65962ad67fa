//! How long exams take, as the share that is reported after a given time.
//!
//! Two measures, because they disagree when it matters. The service's own turnaround begins when the images
//! have arrived, so an outage that keeps images in the hospital is not in it; the emergency ward waits from
//! the end of the scan.

use maud::{Markup, html};

use super::plot::{Axis, MINUTE_MARKS, figure, foot, line, minutes, minutes_mark, px, side};
use super::{Arm, Report};
use crate::day::figures::Figures;
use crate::day::model::Discipline;
use crate::day::record::Record;
use crate::day::statistics::Summary;

const HEIGHT: f64 = 316.0;
const PANEL: f64 = 490.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 290.0;

/// See the module.
pub(super) fn panels(report: &Report<'_>) -> Markup {
    html! {
        p {
            "Share of the radiology exams that are reported within a time. Left: from the arrival of the images, as \
             the service measures its turnaround. Right: from the end of the scan, which also counts images that \
             can't leave the hospital; that is what the emergency ward waits for."
        }
        (figure(HEIGHT, "Two cumulative distributions of the time to the report, for four runs", html! {
            (panel(report, 46.0, "Images received to report", Record::turnaround_ms, |figures| figures.turnaround))
            (panel(report, 590.0, "End of the scan to report", Record::scan_to_report_ms, |figures| figures.from_scan))
        }))
    }
}

fn panel(
    report: &Report<'_>,
    left: f64,
    title: &str,
    duration: fn(&Record) -> Option<u64>,
    summary: fn(&Figures) -> Option<Summary>,
) -> Markup {
    let summary = |arm: Arm| summary(report.figures(arm));
    let longest = Arm::ALL.into_iter().filter_map(&summary).map(|summary| minutes(summary.max_ms));
    let x = Axis::log((2.0, longest.fold(60.0, f64::max)), (left, left + PANEL));
    let y = Axis::linear((0.0, 100.0), (BOTTOM, TOP));
    let published = report.day.parameters.turnaround_mean_min.value;
    let shares = [0.0, 25.0, 50.0, 75.0, 90.0, 100.0];
    html! {
        text.title x=(px(left)) y="14" { (title) }
        (side(&y, (left, left + PANEL), &shares, |share| format!("{share} %")))
        (foot(&x, (TOP, BOTTOM), &MINUTE_MARKS, minutes_mark))
        line.mark x1=(px(x.at(published))) x2=(px(x.at(published))) y1=(px(TOP - 6.0)) y2=(px(BOTTOM)) {}
        text.small.middle x=(px(x.at(published))) y=(px(TOP - 9.0)) { (published) " min, published mean" }
        @for arm in DRAWN { (line(arm, steps(&sorted(report, arm, duration), &x, &y))) }
        (key(left + PANEL, summary))
    }
}

/// What matters is drawn last, on top.
const DRAWN: [Arm; 4] = [Arm::CentralCalm, Arm::MeshCalm, Arm::CentralHarmed, Arm::MeshHarmed];

/// The runs' means and tails, beside their colours, in the empty corner of the panel.
fn key(right: f64, summary: impl Fn(Arm) -> Option<Summary>) -> Markup {
    html! {
        @for (row, arm) in Arm::ALL.into_iter().enumerate() {
            @let y = BOTTOM - 74.0 + 17.0 * row as f64;
            (line(arm, [(right - 232.0, y - 4.0), (right - 206.0, y - 4.0)]))
            text.small.halo x=(px(right - 200.0)) y=(px(y)) {
                (arm.label())
            }
            @if let Some(summary) = summary(arm) {
                text.small.halo.end x=(px(right - 50.0)) y=(px(y)) { (format!("{:.1}", summary.mean_ms / 60_000.0)) }
                text.small.halo.end x=(px(right - 4.0)) y=(px(y)) { (format!("{:.0}", minutes(summary.p99_ms))) }
            }
        }
        @let y = BOTTOM - 92.0;
        text.small.muted.end.halo x=(px(right - 50.0)) y=(px(y)) { "mean, min" }
        text.small.muted.end.halo x=(px(right - 4.0)) y=(px(y)) { "p99" }
    }
}

fn sorted(report: &Report<'_>, arm: Arm, duration: fn(&Record) -> Option<u64>) -> Vec<u64> {
    let pairs = report.day.exams.iter().zip(&report.run(arm).records);
    let radiology = pairs.filter(|(exam, _)| exam.discipline == Discipline::Radiology);
    let mut durations: Vec<u64> = radiology.filter_map(|(_, record)| duration(record)).collect();
    durations.sort_unstable();
    durations
}

/// A point for each exam: so many in a hundred took no longer.
fn steps(sorted: &[u64], x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
    let share = |rank: usize| y.at(100.0 * (rank + 1) as f64 / sorted.len() as f64);
    let mut points: Vec<(f64, f64)> =
        sorted.iter().enumerate().map(|(rank, ms)| (x.at(minutes(*ms)), share(rank))).collect();
    points.dedup_by(|next, last| (next.0 - last.0).abs() < 0.3 && (next.1 - last.1).abs() < 0.3);
    points
}

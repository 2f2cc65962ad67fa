//! By urgency: how long the usual and the unlucky exam takes, beside the target.

use maillage_consensus::exam::Priority;
use maud::{Markup, html};

use super::plot::{Axis, MINUTE_MARKS, dot, figure, foot, minutes, minutes_mark, percent, px};
use super::{Arm, Report};
use crate::day::model::Exam;

const LEFT: f64 = 250.0;
const RIGHT: f64 = 880.0;
const TOP: f64 = 30.0;
const ROW: f64 = 17.0;
/// Four runs and a gap.
const GROUP: f64 = 4.0 * ROW + 16.0;

/// See the module.
pub(super) fn ranges(report: &Report<'_>) -> Markup {
    let groups = report.figures(Arm::MeshCalm).priorities.len();
    let bottom = TOP + GROUP * groups as f64;
    let longest = Arm::ALL.into_iter().flat_map(|arm| &report.figures(arm).priorities);
    let longest = longest.filter_map(|of| of.from_scan).map(|summary| minutes(summary.max_ms)).fold(60.0, f64::max);
    let x = Axis::log((2.0, longest.max(1_440.0)), (LEFT, RIGHT));
    html! {
        p {
            "From the end of the scan to the report, both disciplines: the dot is the median, the line reaches to \
             the 99th percentile, the small circle is the longest. The bar is the target. At the right, the share of \
             exams that met it, counted from the end of the scan and from the arrival of the images."
        }
        p.note {
            "Reading alone takes longer than the target in " (too_long(report, Priority::Vital))
            " of the vital and " (too_long(report, Priority::Urgent))
            " of the urgent exams: no system can meet it there."
        }
        (figure(bottom + 26.0, "Time from scan to report by urgency, for four runs", html! {
            text.small.muted.end x=(px(RIGHT + 92.0)) y="14" { "met, from scan" }
            text.small.muted.end x=(px(RIGHT + 190.0)) y="14" { "from arrival" }
            (foot(&x, (TOP, bottom), &MINUTE_MARKS, minutes_mark))
            @for group in 0..groups { (rows(report, group, TOP + GROUP * group as f64, &x)) }
        }))
    }
}

/// The share of exams whose reading alone misses the target.
fn too_long(report: &Report<'_>, priority: Priority) -> String {
    let of = |exam: &&Exam| exam.refused.is_none() && exam.priority == priority;
    let exams: Vec<&Exam> = report.day.exams.iter().filter(of).collect();
    let long = exams.iter().filter(|exam| exam.reading_ms > priority.target_ms()).count();
    percent(long, exams.len())
}

fn rows(report: &Report<'_>, group: usize, above: f64, x: &Axis) -> Markup {
    let of = |arm: Arm| &report.figures(arm).priorities[group];
    let first = of(Arm::MeshCalm);
    let target = x.at(minutes(first.priority.target_ms()));
    html! {
        text.title x="0" y=(px(above + 20.0)) { (first.priority.as_str()) }
        text.small.muted x="0" y=(px(above + 36.0)) { (first.exams) " exams" }
        line.target x1=(px(target)) x2=(px(target)) y1=(px(above + 4.0)) y2=(px(above + GROUP - 8.0)) {}
        @for (row, arm) in Arm::ALL.into_iter().enumerate() {
            @let y = above + 14.0 + ROW * row as f64;
            text.small.muted.end x=(px(LEFT - 12.0)) y=(px(y + 4.0)) { (arm.label()) }
            @if let Some(summary) = of(arm).from_scan {
                @let [p50, p99, max] = [summary.p50_ms, summary.p99_ms, summary.max_ms].map(|ms| x.at(minutes(ms)));
                line class={ "thin " (arm.class()) } x1=(px(p50)) x2=(px(p99)) y1=(px(y)) y2=(px(y)) {}
                circle class={ "line " (arm.class()) } style="stroke-dasharray: none" cx=(px(max)) cy=(px(y)) r="2.5" {}
                (dot(arm, p50, y))
            }
            text.small.end x=(px(RIGHT + 92.0)) y=(px(y + 4.0)) { (percent(of(arm).met_from_scan, of(arm).exams)) }
            text.small.end x=(px(RIGHT + 190.0)) y=(px(y + 4.0)) { (percent(of(arm).met, of(arm).exams)) }
        }
    }
}

//! By centre: what each read, and how much of its duty it was reading.

use maud::{Markup, html};

use super::plot::{Axis, dot, figure, foot, legend, marks, px};
use super::{Arm, Report};
use crate::day::figures::OfCentre;

const ROW: f64 = 26.0;
const TOP: f64 = 28.0;
const LEFT: f64 = 200.0;
const PANEL: f64 = 400.0;
const SECOND: f64 = LEFT + PANEL + 60.0;

/// See the module.
pub(super) fn panels(report: &Report<'_>) -> Markup {
    let bottom = TOP + ROW * report.day.centres.len() as f64;
    let most =
        Arm::ALL.into_iter().flat_map(|arm| &report.figures(arm).centres).map(|of| of.reported).max().unwrap_or(0);
    let counts = marks(most.max(5) as f64);
    let reported = Axis::linear((0.0, counts.last().copied().unwrap_or(1.0)), (LEFT, LEFT + PANEL));
    let shares = [0.0, 25.0, 50.0, 75.0, 100.0];
    let occupied = Axis::linear((0.0, 100.0), (SECOND, SECOND + PANEL));
    html! {
        p { "Exams reported from each centre, and how much of the time on duty its readers held an exam." }
        (legend())
        (figure(bottom + 26.0, "Exams reported and occupation by centre, for four runs", html! {
            text.title x=(px(LEFT)) y="14" { "Exams reported" }
            text.title x=(px(SECOND)) y="14" { "Share of the time on duty with an exam in hand" }
            (foot(&reported, (TOP, bottom), &counts, |count| count.to_string()))
            (foot(&occupied, (TOP, bottom), &shares, |share| format!("{share} %")))
            @for (at, centre) in report.day.centres.iter().enumerate() {
                @let y = TOP + ROW * (at as f64 + 0.5);
                text.end x=(px(LEFT - 62.0)) y=(px(y + 4.0)) { (centre.name) }
                text.small.muted.end x=(px(LEFT - 10.0)) y=(px(y + 4.0)) {
                    (centre.seats) @if centre.seats == 1 { " seat" } @else { " seats" }
                }
                line.grid x1=(px(LEFT)) x2=(px(SECOND + PANEL)) y1=(px(y)) y2=(px(y)) {}
                @for (place, arm) in Arm::ALL.into_iter().enumerate() {
                    // One above the other, or the last would hide the others where they agree.
                    @let y = y + 4.0 * (place as f64 - 1.5);
                    @let of = &report.figures(arm).centres[at];
                    (dot(arm, reported.at(of.reported as f64), y))
                    @if let Some(share) = occupation(of) { (dot(arm, occupied.at(share), y)) }
                }
            }
        }))
    }
}

/// In percent. A reader who finishes after the end of the shift may bring it above a hundred.
fn occupation(of: &OfCentre) -> Option<f64> {
    (of.on_duty > 0.0).then(|| 100.0 * of.busy / of.on_duty)
}

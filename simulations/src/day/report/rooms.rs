//! Exams that are scanned and in nobody's hands, over the day.
//!
//! Not the waiting room alone: images stuck in a hospital wait as well, and no waiting room shows them.

use maud::{Markup, html};

use super::plot::{Axis, clock, figure, hours, hours_axis, legend, line, marks, px, shades, side};
use super::{Arm, Report};

const TOP: f64 = 48.0;
const HEIGHT: f64 = 214.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 1_064.0;

/// Two panels on one scale: the mesh above, the central server below.
pub(super) fn panels(report: &Report<'_>) -> Markup {
    let most = Arm::ALL.map(|arm| report.figures(arm).waiting_max).into_iter().max().unwrap_or(0).max(5);
    let marks = marks(f64::from(most));
    html! {
        p {
            "In the waiting room, or scanned with images still on their way. Both panels have one scale; the failures \
             are shaded."
        }
        (legend())
        (figure(500.0, "Exams waiting over the day, the mesh above and the central server below", html! {
            (panel(report, 4.0, "The mesh", [Arm::MeshCalm, Arm::MeshHarmed], &marks))
            (panel(report, 262.0, "One central server", [Arm::CentralCalm, Arm::CentralHarmed], &marks))
        }))
    }
}

fn panel(report: &Report<'_>, above: f64, title: &str, arms: [Arm; 2], marks: &[f64]) -> Markup {
    let (top, bottom) = (above + TOP, above + HEIGHT);
    let x = hours_axis((LEFT, RIGHT));
    let y = Axis::linear((0.0, marks.last().copied().unwrap_or(1.0)), (bottom, top));
    html! {
        text.title x=(px(LEFT)) y=(px(above + 12.0)) { (title) ": exams waiting" }
        (side(&y, (LEFT, RIGHT), marks, |count| count.to_string()))
        (clock(&x, (top, bottom)))
        (shades(report, &x, (top, bottom)))
        @for arm in arms { (line(arm, steps(report, arm, &x, &y))) }
        @for arm in arms { (peak(report, arm, &x, &y)) }
    }
}

/// Corners only: between two changes, nothing is to be drawn.
fn steps(report: &Report<'_>, arm: Arm, x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut last = 0;
    for sample in &report.run(arm).waiting {
        let (at, total) = (x.at(hours(sample.at_ms)), sample.total());
        if points.is_empty() || total != last {
            points.push((at, y.at(f64::from(last))));
            points.push((at, y.at(f64::from(total))));
            last = total;
        }
    }
    points.push((RIGHT, y.at(f64::from(last))));
    points
}

fn peak(report: &Report<'_>, arm: Arm, x: &Axis, y: &Axis) -> Markup {
    // The first of equal ones.
    let peak = report.run(arm).waiting.iter().rev().max_by_key(|sample| sample.total());
    let Some(peak) = peak.filter(|peak| peak.total() > 0) else { return html! {} };
    // A calm day's peak would only write over the line of the other.
    let is_harmed = matches!(arm, Arm::MeshHarmed | Arm::CentralHarmed);
    html! {
        @if is_harmed {
            text.small.halo x=(px(x.at(hours(peak.at_ms)) + 2.0)) y=(px(y.at(f64::from(peak.total())) - 6.0)) {
                "at most " (peak.total())
            }
        }
    }
}

//! Hour by hour: how long exams take, and whether enough people are on duty.

use maud::{Markup, html};

use super::plot::{Axis, clock, dot, duration, figure, hours_axis, legend, line, marks, path, px, shades, side};
use super::{Arm, Report};

const LEFT: f64 = 46.0;
const RIGHT: f64 = 1_064.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 274.0;

/// Mean time from scan to report of the exams scanned in each hour.
pub(super) fn turnaround(report: &Report<'_>) -> Markup {
    let means = |arm: Arm| report.figures(arm).hours.iter().take(24).map(|hour| hour.from_scan_ms);
    let longest = Arm::ALL.into_iter().flat_map(means).flatten().fold(0.0, f64::max) / 60_000.0;
    let marks = marks(longest.max(20.0));
    let x = hours_axis((LEFT, RIGHT));
    let y = Axis::linear((0.0, marks.last().copied().unwrap_or(1.0)), (BOTTOM, TOP));
    let published = report.day.parameters.turnaround_mean_min.value;
    let points = |arm: Arm| {
        let points = means(arm).enumerate().filter_map(|(hour, mean)| Some((hour, mean?)));
        points.map(|(hour, mean)| (x.at(hour as f64 + 0.5), y.at(mean / 60_000.0))).collect::<Vec<_>>()
    };
    html! {
        p { "Mean time from the end of the scan to the report, of the radiology exams scanned in each hour." }
        (legend())
        (figure(304.0, "Mean time from scan to report by hour, for four runs", html! {
            text.title x=(px(LEFT)) y="12" { "Minutes from scan to report, mean" }
            (side(&y, (LEFT, RIGHT), &marks, |minutes| minutes.to_string()))
            (clock(&x, (TOP, BOTTOM)))
            (shades(report, &x, (TOP, BOTTOM)))
            line.mark x1=(px(LEFT)) x2=(px(x.at(24.0))) y1=(px(y.at(published))) y2=(px(y.at(published))) {}
            text.small.halo x=(px(x.at(24.0) + 6.0)) y=(px(y.at(published) + 4.0)) { (published) " min, published" }
            @for arm in [Arm::CentralCalm, Arm::MeshCalm, Arm::CentralHarmed, Arm::MeshHarmed] {
                (line(arm, points(arm)))
            }
            @for arm in [Arm::CentralHarmed, Arm::MeshHarmed] { @for (x, y) in points(arm) { (dot(arm, x, y)) } }
        }))
    }
}

/// The roster beside the work, and what Erlang C makes of both.
pub(super) fn roster(report: &Report<'_>) -> Markup {
    let (day, roster) = (report.day, &report.day.roster);
    let parameters = &day.parameters;
    let shifts: u32 = roster.shifts.iter().sum();
    let worked = parameters.radiologists.value * parameters.shifts_per_month.value / 30.4;
    let measured = |arm: Arm| report.figures(arm).wait.map_or_else(|| "–".to_owned(), |wait| duration(wait.mean_ms));
    let (reading, cv) = parameters.reading();
    html! {
        p {
            "Radiologists on duty are the fewest 12-hour shifts whose mean wait, by Erlang C with the correction of \
             Allen and Cunneen, gives the published mean turnaround. Two published figures that were not used \
             check it."
        }
        (figure(324.0, "Radiologists on duty and the work offered, by hour", on_duty(report)))
        dl {
            dt { "Mean reading time of the mix" }
            dd { (format!("{reading:.1} min, coefficient of variation {cv:.2}")) }
            dt { "Mean wait by formula" }
            dd { (format!("{:.1} min, so a turnaround of {:.1} min", roster.wait_min, roster.turnaround_min)) }
            dt { "Mean wait in the runs without failure" }
            dd { (measured(Arm::MeshCalm)) " on the mesh, " (measured(Arm::CentralCalm)) " on the central server" }
            dt { "Exams for each 12-hour shift" }
            dd {
                (format!("{:.0}; published: {} to {}", roster.exams_per_shift, parameters.exams_per_shift.value.0,
                    parameters.exams_per_shift.value.1))
            }
            dt { "Shifts of the day" }
            dd {
                (shifts) " (" (roster.shifts[0]) " from 08:00, " (roster.shifts[1]) " from 12:00, " (roster.shifts[2])
                " from 16:00, " (roster.shifts[3]) " from 20:00); "
                (format!("the group's radiologists work some {worked:.0} a day"))
            }
            dt { "Nuclear physicians" }
            dd { (roster.nuclear) " on duty from 08:00 to 20:00" }
        }
    }
}

fn on_duty(report: &Report<'_>) -> Markup {
    let hours = &report.day.roster.hours;
    let most = hours.iter().map(|hour| f64::from(hour.on_duty)).fold(1.0, f64::max);
    let marks = marks(most);
    let x = Axis::linear((0.0, 24.0), (LEFT, RIGHT - 150.0));
    let y = Axis::linear((0.0, marks.last().copied().unwrap_or(1.0)), (BOTTOM, TOP));
    let steps = hours
        .iter()
        .enumerate()
        .flat_map(|(hour, load)| [0.0, 1.0].map(|edge| (x.at(hour as f64 + edge), y.at(f64::from(load.on_duty)))));
    let last = hours.last();
    html! {
        text.title x=(px(LEFT)) y="12" { "Radiologists" }
        (side(&y, (LEFT, RIGHT - 150.0), &marks, |count| count.to_string()))
        (clock(&x, (TOP, BOTTOM)))
        @for (hour, load) in hours.iter().enumerate() {
            @let (left, right) = (x.at(hour as f64) + 2.0, x.at(hour as f64 + 1.0) - 2.0);
            @let top = y.at(load.offered);
            rect.bar x=(px(left)) width=(px(right - left)) y=(px(top)) height=(px(BOTTOM - top)) {}
            text.small.muted.middle x=(px(f64::midpoint(left, right))) y=(px(BOTTOM + 36.0)) {
                (wait_mark(load.wait_min))
            }
        }
        text.small.muted x=(px(RIGHT - 144.0)) y=(px(BOTTOM + 36.0)) { "mean wait by formula, min" }
        polyline.step points=(path(steps)) {}
        @if let Some(last) = last {
            text x=(px(RIGHT - 144.0)) y=(px(y.at(f64::from(last.on_duty)) + 4.0)) { "on duty" }
            text.muted x=(px(RIGHT - 144.0)) y=(px(y.at(last.offered) + 4.0)) { "busy on average (Erlang)" }
        }
    }
}

fn wait_mark(minutes: f64) -> String {
    if minutes.is_finite() { format!("{minutes:.1}") } else { "∞".to_owned() }
}

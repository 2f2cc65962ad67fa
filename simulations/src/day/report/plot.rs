//! What the plots share: axes, lines, labels, shades of failures.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::{Arm, Report};
use crate::day::{HOUR_MS, MINUTE_MS};

/// Width of every figure, in its own units; it scales to the page.
pub(super) const WIDTH: f64 = 1080.0;

/// An axis: values to places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    is_log: bool,
}

impl Axis {
    /// Values evenly from `from` to `to` over the places `start` to `end`.
    pub(super) fn linear((from, to): (f64, f64), (start, end): (f64, f64)) -> Self {
        Self { from, to: if to > from { to } else { from + 1.0 }, start, end, is_log: false }
    }

    /// The same for positive values, each factor the same length.
    pub(super) fn log((from, to): (f64, f64), places: (f64, f64)) -> Self {
        Self { is_log: true, ..Self::linear((from, to), places) }
    }

    /// The place of a value; what lies outside is put on the edge.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        let share = if self.is_log {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        self.start + share * (self.end - self.start)
    }

    fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }
}

/// The day, and the first hours of the night that follows, in hours.
pub(super) fn hours_axis(places: (f64, f64)) -> Axis {
    Axis::linear((0.0, SHOWN_HOURS), places)
}

/// Hours that plots over time show: by then the evening's exams are read, or it is to be seen that not.
const SHOWN_HOURS: f64 = 27.0;

/// The marks of a logarithmic axis of minutes.
pub(super) const MINUTE_MARKS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0, 480.0, 1_440.0];

/// A duration as a mark says it.
pub(super) fn minutes_mark(minutes: f64) -> String {
    if minutes < 60.0 { format!("{minutes} min") } else { format!("{} h", minutes / 60.0) }
}

/// Round steps that divide `0..=max` into some five parts.
pub(super) fn marks(max: f64) -> Vec<f64> {
    let rough = (max / 5.0).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let step = if max >= 5.0 { step.max(1.0) } else { step };
    let mut marks = vec![0.0];
    while let Some(last) = marks.last().filter(|last| **last < max) {
        marks.push(last + step);
    }
    marks
}

/// A horizontal axis at the foot, with marks and lines up to `top`.
pub(super) fn foot(axis: &Axis, (top, bottom): (f64, f64), marks: &[f64], label: impl Fn(f64) -> String) -> Markup {
    html! {
        @for mark in marks.iter().copied().filter(|mark| axis.holds(*mark)) {
            line.grid x1=(px(axis.at(mark))) x2=(px(axis.at(mark))) y1=(px(top)) y2=(px(bottom)) {}
            text.muted.small.middle x=(px(axis.at(mark))) y=(px(bottom + 16.0)) { (label(mark)) }
        }
        line.axis x1=(px(axis.start)) x2=(px(axis.end)) y1=(px(bottom)) y2=(px(bottom)) {}
    }
}

/// Horizontal lines with their values at the left.
pub(super) fn side(axis: &Axis, (left, right): (f64, f64), marks: &[f64], label: impl Fn(f64) -> String) -> Markup {
    html! {
        @for mark in marks.iter().copied().filter(|mark| axis.holds(*mark)) {
            line.grid x1=(px(left)) x2=(px(right)) y1=(px(axis.at(mark))) y2=(px(axis.at(mark))) {}
            text.muted.small.end x=(px(left - 6.0)) y=(px(axis.at(mark) + 4.0)) { (label(mark)) }
        }
    }
}

/// The foot of a plot over the day.
pub(super) fn clock(axis: &Axis, places: (f64, f64)) -> Markup {
    const MARKS: [f64; 10] = [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0, 27.0];
    foot(axis, places, &MARKS, |hour| format!("{:02.0}:00", if hour >= 24.0 { hour - 24.0 } else { hour }))
}

/// The spans of the failures, behind a plot over the day, with their names above it.
pub(super) fn shades(report: &Report<'_>, axis: &Axis, (top, bottom): (f64, f64)) -> Markup {
    // Names go in rows where they would run into each other.
    let mut row_ends: Vec<f64> = Vec::new();
    let shades = report.scenario.failures.iter().map(|failure| {
        let (from, until) = (axis.at(hours(failure.from_ms)), axis.at(hours(failure.until_ms)));
        let name_end = from + 8.0 + 6.6 * failure.name.chars().count() as f64;
        let row = row_ends.iter().position(|end| *end < from).unwrap_or(row_ends.len());
        if row == row_ends.len() {
            row_ends.push(name_end);
        } else {
            row_ends[row] = name_end;
        }
        (failure, from, until, top - 5.0 - 13.0 * row as f64)
    });
    let shades: Vec<_> = shades.collect();
    html! {
        @for (_, from, until, _) in &shades {
            rect.shade x=(px(*from)) width=(px(until - from)) y=(px(top)) height=(px(bottom - top)) {}
        }
        @for (failure, from, _, y) in &shades {
            text.small x=(px(*from)) y=(px(*y)) { (failure.name) }
        }
    }
}

/// A line through points, in a run's colour.
pub(super) fn line(arm: Arm, points: impl IntoIterator<Item = (f64, f64)>) -> Markup {
    html! { polyline class={ "line " (arm.class()) } points=(path(points)) {} }
}

/// Points as SVG wants them.
pub(super) fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        // Writing to a String can't fail.
        let _ = write!(path, "{x:.1},{y:.1} ");
    }
    path.truncate(path.trim_end().len());
    path
}

/// A dot in a run's colour.
pub(super) fn dot(arm: Arm, x: f64, y: f64) -> Markup {
    html! { circle class={ "dot " (arm.class()) } cx=(px(x)) cy=(px(y)) r="4.5" { title { (arm.label()) } } }
}

/// The key of the four runs.
pub(super) fn legend() -> Markup {
    html! {
        div.legend {
            @for arm in Arm::ALL {
                span {
                    svg viewBox="0 0 34 12" aria-hidden="true" {
                        (line(arm, [(1.0, 6.0), (33.0, 6.0)]))
                        (dot(arm, 17.0, 6.0))
                    }
                    (arm.label())
                }
            }
        }
    }
}

/// A figure of this height, said in words for who can't see it.
pub(super) fn figure(height: f64, words: &str, body: Markup) -> Markup {
    html! {
        figure {
            svg viewBox={ "0 0 " (px(WIDTH)) " " (px(height)) } role="img" aria-label=(words) { (body) }
        }
    }
}

/// A place, to a tenth.
pub(super) fn px(place: f64) -> String {
    format!("{place:.1}")
}

/// Milliseconds as hours.
pub(super) fn hours(ms: u64) -> f64 {
    ms as f64 / HOUR_MS as f64
}

/// Milliseconds as minutes.
pub(super) fn minutes(ms: u64) -> f64 {
    ms as f64 / MINUTE_MS as f64
}

/// A duration for people: `16.2 min`, `2 h 05`.
pub(super) fn duration(ms: f64) -> String {
    /// Whole minutes are precise enough from here.
    const LONG_MIN: f64 = 60.0;
    let minutes = ms / MINUTE_MS as f64;
    if minutes < LONG_MIN {
        return format!("{minutes:.1} min");
    }
    let whole = minutes.round();
    format!("{:.0} h {:02.0}", (whole / 60.0).floor(), whole % 60.0)
}

/// A share in percent; never rounded up to all.
pub(super) fn percent(part: usize, whole: usize) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let tenths = (part * 1_000) / whole;
    if tenths == 1_000 { "100 %".to_owned() } else { format!("{}.{} %", tenths / 10, tenths % 10) }
}

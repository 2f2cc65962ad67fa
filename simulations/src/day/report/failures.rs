//! The failures of the day, on its clock.

use maud::{Markup, html};

use super::Report;
use super::plot::{clock, figure, hours, hours_axis, px};
use crate::day::scenario::Harm;
use crate::day::{DAY_MS, HOUR_MS, MINUTE_MS};

const LEFT: f64 = 190.0;
const RIGHT: f64 = 1_064.0;
const ROW: f64 = 30.0;

/// See the module.
pub(super) fn timeline(report: &Report<'_>) -> Markup {
    let failures = &report.scenario.failures;
    if failures.is_empty() {
        return html! { p { "Nothing: all runs are without failure." } };
    }
    let bottom = 10.0 + ROW * failures.len() as f64;
    let x = hours_axis((LEFT, RIGHT));
    html! {
        (figure(bottom + 26.0, "Failures over the day", html! {
            (clock(&x, (4.0, bottom)))
            @for (row, failure) in failures.iter().enumerate() {
                @let y = 10.0 + ROW * row as f64;
                @let (from, until) = (x.at(hours(failure.from_ms)), x.at(hours(failure.until_ms)));
                text.end x=(px(LEFT - 12.0)) y=(px(y + 15.0)) { (failure.name) }
                rect.bar x=(px(from)) width=(px(until - from)) y=(px(y + 1.0)) height=(px(ROW - 10.0)) rx="2" {}
                text.small.halo x=(px(until + 6.0)) y=(px(y + 15.0)) {
                    (time(failure.from_ms)) " to " (time(failure.until_ms))
                }
            }
        }))
        dl {
            @for failure in failures {
                dt { (failure.name) }
                dd { (meaning(report, failure.harm)) }
            }
        }
    }
}

fn meaning(report: &Report<'_>, harm: Harm) -> String {
    let (day, here) = (report.day, |count: usize| if count == 1 { "centre" } else { "centres" });
    match harm {
        Harm::CentreLost(_) => "no power: node, workstations and readers stop; readings begun are lost".to_owned(),
        Harm::CentreCut(_) => "its line is cut; its readers sit before working machines".to_owned(),
        Harm::CloudLost => {
            "for the mesh one site of many; the central server's only data centre: nobody sends, claims or reports"
                .to_owned()
        }
        Harm::TerritoryCut(territory) => {
            let centres = day.centres.iter().filter(|centre| centre.territory == territory).count();
            let hospitals = day.hospitals.iter().filter(|hospital| hospital.territory == territory).count();
            let here = here(centres);
            format!("no link to the outside for {centres} {here} and {hospitals} hospitals; inside, links work")
        }
    }
}

fn time(ms: u64) -> String {
    let ms = ms % DAY_MS;
    format!("{:02}:{:02}", ms / HOUR_MS, ms % HOUR_MS / MINUTE_MS)
}

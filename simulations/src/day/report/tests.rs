//! The page, from four runs of the central server: in the mesh's place stands one whose cloud is never needed.
//!
//! With a path in `DAY_REPORT` the page is written there, to be looked at.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Arm, Made, Report, write_html};
use crate::day::central;
use crate::day::model::{Day, Parameters};
use crate::day::record::{Run, RunError};
use crate::day::scenario::{Harm, Scenario};

/// For the page's sake only: no cloud to lose, no link to be cut, claims that return within a session's time.
fn stand_in(day: &Day, scenario: &Scenario) -> Run {
    let mut day = day.clone();
    day.parameters.central_return_min.value = 0.5;
    let failures = scenario.failures.iter().filter(|failure| matches!(failure.harm, Harm::CentreLost(_)));
    central::run(&day, &Scenario { name: scenario.name.clone(), failures: failures.cloned().collect() })
}

fn runs(day: &Day, scenario: &Scenario) -> [Run; 4] {
    let none = Scenario::none();
    [stand_in(day, &none), stand_in(day, scenario), central::run(day, &none), central::run(day, scenario)]
}

fn made() -> Made {
    Made {
        command: "cargo sim day --seed 7 --out day.html".to_owned(),
        version: "0.1.0".to_owned(),
        node_hours: 1_224.0,
        wall_seconds: 153.0,
        notes: Vec::new(),
    }
}

/// Every element that is opened is closed, in order: a page that browsers need not mend.
fn elements(page: &str) -> BTreeMap<String, usize> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let (mut open, mut counts) = (Vec::new(), BTreeMap::new());
    for tag in page.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.split_whitespace().next().unwrap_or_default();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed out of order");
        } else if !VOID.contains(&name) {
            open.push(name);
            *counts.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    assert_eq!(open, Vec::<&str>::new());
    counts
}

#[test]
fn the_page_is_whole_self_contained_and_has_every_plot() {
    let day = Day::draw(&Parameters::default(), 7, true);
    let scenario = Scenario::named("bad-night", &day).unwrap();
    let report = Report::new(&day, &scenario, runs(&day, &scenario), made()).unwrap();
    let page = report.html();
    let counts = elements(&page);
    assert_eq!(counts["figure"], 7, "{counts:?}");
    assert!(counts["polyline"] >= 20, "{counts:?}");
    for absent in ["<script", "http:", "https:", "url(", "@import", "src=", "NaN", "\"inf"] {
        assert!(!page.contains(absent), "the page contains {absent}");
    }
    for arm in Arm::ALL {
        assert!(page.contains(arm.label()));
    }
    for row in day.parameters.rows() {
        assert!(page.contains(&row.name.replace('&', "&amp;")), "{}", row.name);
    }
    for failure in &scenario.failures {
        assert!(page.contains(&failure.name));
    }
    assert!(page.contains(&format!("{} exams requested", day.exams.len())));
    assert!(page.len() < 600_000, "{} bytes", page.len());
    // One day gives one page, byte for byte.
    assert_eq!(page, Report::new(&day, &scenario, runs(&day, &scenario), made()).unwrap().html());
    if let Some(path) = std::env::var_os("DAY_REPORT") {
        write_html(&report, &PathBuf::from(path)).unwrap();
    }
}

#[test]
fn text_from_outside_is_escaped() {
    let mut day = Day::draw(&Parameters::default(), 7, false);
    day.centres[0].name = "<script>alert(1)</script> & \"Lyon\"".to_owned();
    let scenario = Scenario::named("bad-night", &day).unwrap();
    let made = Made { command: "<b>".to_owned(), ..made() };
    let page = Report::new(&day, &scenario, runs(&day, &scenario), made).unwrap().html();
    assert!(!page.contains("<script") && !page.contains("<b>"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp;"));
    elements(&page);
}

#[test]
fn a_day_without_failures_or_exams_still_makes_a_page() {
    let mut parameters = Parameters::default();
    parameters.exams_weekday.value = 0.0;
    parameters.nuclear_per_year.value = 0.0;
    let day = Day::draw(&parameters, 1, false);
    let scenario = Scenario::none();
    let page = Report::new(&day, &scenario, runs(&day, &scenario), made()).unwrap().html();
    elements(&page);
    assert!(!page.contains("NaN"), "a place that is no number");
}

#[test]
fn a_run_of_another_day_is_refused() {
    let draw = |seed| Day::draw(&Parameters::default(), seed, true);
    let (day, other) = (draw(1), draw(2));
    let scenario = Scenario::none();
    let report = Report::new(&day, &scenario, runs(&other, &scenario), made());
    assert!(matches!(report, Err(RunError::Count { .. } | RunError::Record { .. })));
}

//! Every figure that a day is drawn from, with its unit and where it comes from.
//!
//! The service taken as a model publishes totals and means; what it does not publish is an assumption and
//! says so. The report prints all of it, so that a reader can judge what the plots rest on.

use super::kinds::{self, Kind};
use super::{places, roster};

/// How well a figure is founded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Published by the service taken as a model.
    Service,
    /// Published by others.
    Published,
    /// Nobody's figure but ours.
    Assumption,
}

impl Basis {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Published => "published",
            Self::Assumption => "assumption",
        }
    }
}

/// A value, its unit, and where it comes from.
#[derive(Debug, Clone)]
pub struct Given<T> {
    /// The value.
    pub value: T,
    /// Its unit.
    pub unit: &'static str,
    /// How well founded.
    pub basis: Basis,
    /// Where from, for people.
    pub source: &'static str,
}

const fn given<T>(value: T, unit: &'static str, basis: Basis, source: &'static str) -> Given<T> {
    Given { value, unit, basis, source }
}

/// A parameter as the report prints it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Its value and unit.
    pub value: String,
    /// How well founded.
    pub basis: Basis,
    /// Where from.
    pub source: String,
}

/// The figures of the service.
#[derive(Debug, Clone)]
pub struct Parameters {
    /// Exams requested of the radiologists on a weekday.
    pub exams_weekday: Given<f64>,
    /// The same at a weekend.
    pub exams_weekend: Given<f64>,
    /// Relative request rate by hour on a weekday.
    pub hours_weekday: Given<[f64; 24]>,
    /// The same at a weekend.
    pub hours_weekend: Given<[f64; 24]>,
    /// Kinds of exams that radiologists read.
    pub kinds: Vec<Kind>,
    /// Nuclear medicine exams in a year.
    pub nuclear_per_year: Given<f64>,
    /// Days of a year on which nuclear medicine works.
    pub nuclear_days: Given<f64>,
    /// Nuclear medicine exams on a day of a weekend.
    pub nuclear_weekend: Given<f64>,
    /// Relative request rate of nuclear medicine by hour.
    pub nuclear_hours: Given<[f64; 24]>,
    /// Kinds of exams that nuclear physicians read.
    pub nuclear_kinds: Vec<Kind>,
    /// Hospitals with nuclear medicine.
    pub nuclear_hospitals: Given<usize>,
    /// Nuclear physicians of the group.
    pub nuclear_physicians: Given<u32>,
    /// Mean wait that nuclear medicine is staffed for, in minutes.
    pub nuclear_wait_min: Given<f64>,
    /// Partner hospitals.
    pub hospitals: Given<usize>,
    /// Mean time from images received to report, which the roster is made for.
    pub turnaround_mean_min: Given<f64>,
    /// Coefficient of variation of the reading time within a kind.
    pub reading_cv: Given<f64>,
    /// Exams that a radiologist reads in a 12-hour shift: from, to.
    pub exams_per_shift: Given<(f64, f64)>,
    /// Radiologists of the group; the check of the roster.
    pub radiologists: Given<f64>,
    /// Shifts of each in a month.
    pub shifts_per_month: Given<f64>,
    /// Mean time from request to assigned protocol.
    pub regulation_min: Given<f64>,
    /// Coefficient of variation of regulation and of the wait for the scanner.
    pub delay_cv: Given<f64>,
    /// Share of requests that the regulator refuses.
    pub refused: Given<f64>,
    /// Mean time from request to the start of the scan.
    pub request_to_scan_min: Given<f64>,
    /// Factor on both delays for an absolute emergency.
    pub vital_delay: Given<f64>,
    /// Rates that hospitals can send at, in Mb/s, each with its share of hospitals.
    pub uplinks_mbps: Given<[(f64, f64); 4]>,
    /// Bytes that stand for a study in the simulated stores: from, to.
    pub bytes_simulated: Given<(u64, u64)>,
    /// On the central server: how long until somebody gives back, by hand, the claims of a centre that is
    /// gone.
    pub central_return_min: Given<f64>,
}

const GROUP: &str = "the service taken as a model";
const SHAPE: &str = "emergency requests peak in the evening and ebb after 03:00; proportions";
const EPOS: &str = "ECR 2012 poster C-1606, teleradiology beside on-call radiology in two French hospitals";

impl Default for Parameters {
    fn default() -> Self {
        use Basis::{Assumption, Published, Service};
        Self {
            exams_weekday: given(750.0, "exams/day", Service, GROUP),
            exams_weekend: given(950.0, "exams/day", Service, GROUP),
            hours_weekday: given(HOURS_WEEKDAY, "% of day", Assumption, SHAPE),
            hours_weekend: given(HOURS_WEEKEND, "% of day", Assumption, SHAPE),
            kinds: kinds::radiology(),
            nuclear_per_year: given(15_000.0, "exams/year", Service, "the service taken as a model, since 2025"),
            nuclear_days: given(251.0, "days/year", Assumption, "working days of a French year"),
            nuclear_weekend: given(6.0, "exams/day", Assumption, "urgent scintigraphies only"),
            nuclear_hours: given(HOURS_NUCLEAR, "% of day", Assumption, "planned, 08:00 to 18:00"),
            nuclear_kinds: kinds::nuclear(),
            nuclear_hospitals: given(7, "hospitals", Service, GROUP),
            nuclear_physicians: given(25, "physicians", Service, GROUP),
            nuclear_wait_min: given(15.0, "min", Assumption, "planned exams may wait a little"),
            hospitals: given(100, "hospitals", Service, "the service taken as a model: about a hundred"),
            turnaround_mean_min: given(16.0, "min", Service, "the service taken as a model: images received to report"),
            reading_cv: given(0.6, "", Assumption, "log-normal, as times of human work are"),
            exams_per_shift: given(
                (30.0, 50.0),
                "exams/12 h",
                Service,
                "checked against the drawn roster, not used to draw",
            ),
            radiologists: given(360.0, "radiologists", Service, "checked against the drawn roster, not used to draw"),
            shifts_per_month: given(
                2.5,
                "shifts/month",
                Service,
                "two or three nights a month; checked, not used to draw",
            ),
            regulation_min: given(3.8, "min", Published, EPOS),
            delay_cv: given(0.8, "", Assumption, "log-normal"),
            refused: given(0.02, "of requests", Assumption, "few, since requests come from emergency physicians"),
            request_to_scan_min: given(36.0, "min", Published, EPOS),
            vital_delay: given(0.4, "× delay", Assumption, "an absolute emergency goes first"),
            uplinks_mbps: given(
                [(0.15, 20.0), (0.35, 50.0), (0.35, 100.0), (0.15, 500.0)],
                "Mb/s",
                Assumption,
                "what a hospital's line leaves for images",
            ),
            bytes_simulated: given(
                (6_000, 60_000),
                "bytes",
                Assumption,
                "scaled down; transfer time uses the real size",
            ),
            central_return_min: given(
                15.0,
                "min",
                Assumption,
                "a colleague notices by telephone and gives the claims back",
            ),
        }
    }
}

/// Sums to about a hundred; only the proportions count.
const HOURS_WEEKDAY: [f64; 24] = [
    5.4, 4.4, 3.5, 2.9, 2.6, 2.4, 2.5, 2.7, 2.4, 2.6, 3.0, 3.2, 3.2, 3.2, 3.4, 3.6, 3.9, 4.5, 6.0, 7.0, 7.5, 7.5, 7.0,
    6.3,
];
/// At a weekend hospitals have no radiologist by day either.
const HOURS_WEEKEND: [f64; 24] = [
    4.8, 4.0, 3.3, 2.7, 2.3, 2.2, 2.1, 2.3, 3.0, 3.9, 4.7, 5.0, 4.8, 4.7, 4.9, 5.1, 5.2, 5.3, 5.4, 5.4, 5.4, 5.2, 5.0,
    4.6,
];
const HOURS_NUCLEAR: [f64; 24] = [
    0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 12.0, 12.0, 11.0, 8.0, 9.0, 11.0, 11.0, 9.0, 7.0, 0.0, 0.0, 0.0, 0.0,
    0.0, 0.0,
];

impl Parameters {
    /// Exams expected of the radiologists on such a day.
    pub fn exams(&self, weekend: bool) -> f64 {
        if weekend { self.exams_weekend.value } else { self.exams_weekday.value }
    }

    /// Relative request rate by hour on such a day.
    pub fn hours(&self, weekend: bool) -> &[f64; 24] {
        if weekend { &self.hours_weekend.value } else { &self.hours_weekday.value }
    }

    /// Exams expected of the nuclear physicians on such a day.
    pub fn nuclear(&self, weekend: bool) -> f64 {
        if weekend { self.nuclear_weekend.value } else { self.nuclear_per_year.value / self.nuclear_days.value }
    }

    /// Mean reading time of the radiologists' mix, in minutes, and its coefficient of variation.
    pub fn reading(&self) -> (f64, f64) {
        kinds::reading(&self.kinds, self.reading_cv.value)
    }

    /// The same of the nuclear physicians.
    pub fn nuclear_reading(&self) -> (f64, f64) {
        kinds::reading(&self.nuclear_kinds, self.reading_cv.value)
    }

    /// All, for a reader of the report.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = self.demand_rows();
        for kind in self.kinds.iter().chain(&self.nuclear_kinds) {
            let (from, to) = (kind.images.0 as f64 * kind.image_mb, kind.images.1 as f64 * kind.image_mb);
            rows.push(Row {
                name: format!("{} ({})", kind.name, kind.modality),
                value: format!(
                    "{:.0} % of its discipline; read in {} min, scanned in {} min, {from:.0} to {to:.0} MB",
                    kind.share * 100.0,
                    kind.reading_min.value,
                    kind.scan_min
                ),
                basis: kind.reading_min.basis,
                source: format!("reading time: {}; all else: assumption", kind.reading_min.source),
            });
        }
        rows.extend(self.course_rows());
        rows.extend(place_rows());
        rows
    }

    fn demand_rows(&self) -> Vec<Row> {
        vec![
            row("Exams on a weekday", &self.exams_weekday, |value| value.to_string()),
            row("Exams on a day of a weekend", &self.exams_weekend, |value| value.to_string()),
            row("Requests by hour, weekday", &self.hours_weekday, hours),
            row("Requests by hour, weekend", &self.hours_weekend, hours),
            row("Partner hospitals", &self.hospitals, usize::to_string),
            row("Nuclear medicine, a year", &self.nuclear_per_year, |value| value.to_string()),
            row("Nuclear medicine, days of work", &self.nuclear_days, |value| value.to_string()),
            row("Nuclear medicine at a weekend", &self.nuclear_weekend, |value| value.to_string()),
            row("Nuclear medicine by hour", &self.nuclear_hours, hours),
            row("Nuclear medicine, hospitals", &self.nuclear_hospitals, usize::to_string),
            row("Nuclear physicians", &self.nuclear_physicians, u32::to_string),
            row("Nuclear medicine, mean wait staffed for", &self.nuclear_wait_min, |value| value.to_string()),
            row("Mean turnaround staffed for", &self.turnaround_mean_min, |value| value.to_string()),
            row("Exams of a radiologist", &self.exams_per_shift, |value| format!("{} to {}", value.0, value.1)),
            row("Radiologists", &self.radiologists, |value| value.to_string()),
            row("Shifts of a radiologist", &self.shifts_per_month, |value| value.to_string()),
        ]
    }

    fn course_rows(&self) -> Vec<Row> {
        let uplinks =
            |rates: &[(f64, f64); 4]| rates.map(|(share, rate)| format!("{rate} ({:.0} %)", share * 100.0)).join(", ");
        vec![
            row("Variation of reading time (standard deviation / mean)", &self.reading_cv, |value| value.to_string()),
            row("Request to protocol (regulation)", &self.regulation_min, |value| value.to_string()),
            row("Request to start of the scan", &self.request_to_scan_min, |value| value.to_string()),
            row("Variation of these two delays", &self.delay_cv, |value| value.to_string()),
            row("These two delays for an absolute emergency", &self.vital_delay, |value| value.to_string()),
            row("Refused by the regulator", &self.refused, |value| format!("{} %", value * 100.0)),
            row("Hospitals' uplinks", &self.uplinks_mbps, uplinks),
            row("A study in the simulated stores", &self.bytes_simulated, |value| {
                format!("{} to {}", value.0, value.1)
            }),
            row("Central server: claims of a lost centre return after", &self.central_return_min, |v| v.to_string()),
        ]
    }
}

/// What stands in `places` and `roster`: settings of the model, not of a run.
fn place_rows() -> Vec<Row> {
    let line = |name: &str, value: String, basis, source: &str| Row {
        name: name.to_owned(),
        value,
        basis,
        source: source.to_owned(),
    };
    let seats = places::PLACES.map(|place| format!("{} {}", place.name, place.seats)).join(", ");
    let hospitals = places::TERRITORIES.map(|place| format!("{} {}", place.name, place.hospitals)).join(", ");
    let starts = roster::SHIFT_STARTS.map(|hour| format!("{hour:02}:00")).join(", ");
    vec![
        line(
            "Reading centres and their seats",
            seats,
            Basis::Service,
            "16 centres of 1 to 7 seats; which has how many: assumption",
        ),
        line("Hospitals by territory, in a hundred", hospitals, Basis::Assumption, "most are where the centres are"),
        line("Length of a shift", format!("{} h", roster::SHIFT_HOURS), Basis::Service, GROUP),
        line("Shifts begin at", starts, Basis::Assumption, "day, noon, evening, night"),
    ]
}

fn row<T>(name: &str, given: &Given<T>, show: impl Fn(&T) -> String) -> Row {
    let value = format!("{} {}", show(&given.value), given.unit).trim_end().to_owned();
    Row { name: name.to_owned(), value, basis: given.basis, source: given.source.to_owned() }
}

fn hours(hours: &[f64; 24]) -> String {
    hours.map(|share| share.to_string()).join(" ")
}

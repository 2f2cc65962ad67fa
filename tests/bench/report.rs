//! What was measured, for people and for programs.

use serde_json::{Value, json};

use crate::lab::{Ticks, machine};

/// All of it.
#[derive(Debug)]
pub(crate) struct Report {
    /// A section for each part.
    pub(crate) sections: Vec<Section>,
    rounds: usize,
}

/// One part's figures.
#[derive(Debug)]
pub(crate) struct Section {
    name: &'static str,
    title: String,
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
    skipped: Vec<String>,
    began: Option<Ticks>,
    /// Of the machine's processor time while it was measured, in percent.
    other_work: Option<u64>,
}

/// One thing measured in every round.
#[derive(Debug)]
pub(crate) struct Row {
    /// What it is.
    pub(crate) name: String,
    /// What one must know to compare it.
    pub(crate) note: &'static str,
    /// Its figures.
    pub(crate) figures: Vec<Figure>,
}

/// One quantity, once a round.
#[derive(Debug)]
pub(crate) struct Figure {
    unit: &'static str,
    more_is_better: bool,
    values: Vec<f64>,
}

/// A figure beside its peer's, by the medians.
#[derive(Debug)]
struct Ratio {
    name: String,
    value: f64,
    at_least: f64,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(rounds: usize) -> Self {
        println!("{}; {rounds} rounds; best and median of the rounds", machine());
        Self { sections: Vec::new(), rounds }
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let sections: Vec<Value> = self.sections.iter().map(Section::to_json).collect();
        json!({ "version": 1, "machine": machine(), "rounds": self.rounds, "sections": sections })
    }
}

impl Figure {
    /// Times and the like.
    pub(crate) fn less_is_better(unit: &'static str, values: Vec<f64>) -> Self {
        Self { unit, more_is_better: false, values }
    }

    /// Rates.
    pub(crate) fn more_is_better(unit: &'static str, values: Vec<f64>) -> Self {
        Self { unit, more_is_better: true, values }
    }

    /// The value in the middle.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    fn best(&self) -> f64 {
        let sorted = self.sorted();
        let best = if self.more_is_better { sorted.last() } else { sorted.first() };
        best.copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    }
}

impl Row {
    /// The seconds that `bytes` took in each round, and the rates that these are.
    pub(crate) fn transfer(name: &str, note: &'static str, bytes: u64, seconds: Vec<f64>) -> Self {
        let rates = seconds.iter().map(|seconds| bytes as f64 / 1e6 / seconds).collect();
        let figures = vec![Figure::less_is_better("s", seconds), Figure::more_is_better("MB/s", rates)];
        Self { name: name.to_owned(), note, figures }
    }

    /// The median in this unit.
    pub(crate) fn median(&self, unit: &str) -> f64 {
        self.figures.iter().find(|figure| figure.unit == unit).map_or(f64::NAN, Figure::median)
    }
}

impl Section {
    /// An empty one.
    pub(crate) fn new(name: &'static str, title: String) -> Self {
        Self {
            name,
            title,
            rows: Vec::new(),
            ratios: Vec::new(),
            skipped: Vec::new(),
            began: Ticks::now(),
            other_work: None,
        }
    }

    /// Adds what was measured.
    pub(crate) fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Says that a peer is not on this machine.
    pub(crate) fn skip(&mut self, peer: &str) {
        self.skipped.push(peer.to_owned());
    }

    /// Adds a ratio that is to be `at_least` so much, when both sides were measured.
    pub(crate) fn ratio(&mut self, name: &str, value: f64, at_least: f64) {
        if value.is_finite() {
            self.ratios.push(Ratio { name: name.to_owned(), value, at_least });
        }
    }

    /// The median of a row in a unit, not a number when there is no such row.
    pub(crate) fn median(&self, row: &str, unit: &str) -> f64 {
        self.rows.iter().find(|found| found.name == row).map_or(f64::NAN, |found| found.median(unit))
    }

    /// Notes what else the machine did while this was measured. Called once every process has ended.
    pub(crate) fn ended(&mut self) {
        self.other_work = Ticks::now().zip(self.began).map(|(now, began)| now.others_since(began));
    }

    /// For people.
    pub(crate) fn print(&self) {
        println!("\n{}: {}", self.name, self.title);
        if let Some(percent) = self.other_work {
            println!("  other work had {percent} % of the machine meanwhile");
        }
        for row in &self.rows {
            let shown = |figure: &Figure| {
                let (best, median) = (number(figure.best()), number(figure.median()));
                format!("{best:>8} {median:>8} {:<9}", figure.unit)
            };
            let figures: String = row.figures.iter().map(shown).collect();
            println!("  {:<38}{figures} {}", row.name, row.note);
        }
        for Ratio { name, value, at_least } in &self.ratios {
            let verdict = if value >= at_least { "met" } else { "MISSED" };
            println!("  {name:<58} {:>8}  aim {at_least}: {verdict}", number(*value));
        }
        for peer in &self.skipped {
            println!("  skipped: {peer} is not on this machine");
        }
    }

    fn to_json(&self) -> Value {
        let figure = |figure: &Figure| json!({ "unit": figure.unit, "best": figure.best(), "median": figure.median(), "values": figure.values });
        let row = |row: &Row| {
            let figures: Vec<Value> = row.figures.iter().map(figure).collect();
            json!({ "name": row.name, "note": row.note, "figures": figures })
        };
        let ratio = |ratio: &Ratio| {
            let is_met = ratio.value >= ratio.at_least;
            json!({ "name": ratio.name, "value": ratio.value, "aim": ratio.at_least, "met": is_met })
        };
        json!({
            "name": self.name,
            "title": self.title,
            "other_work_percent": self.other_work,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "ratios": self.ratios.iter().map(ratio).collect::<Vec<_>>(),
            "skipped": self.skipped,
        })
    }
}

/// Three digits that count, and no more.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

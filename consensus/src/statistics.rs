//! How long reading takes: one small record for each final report, in the order of their signing, so that
//! exact figures over any period need no exam to be read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::exam::{Priority, Text8};
use crate::ids::{ExamId, Line, Name, SiteId};
use crate::record::Record;

/// One final report's times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turnaround {
    /// The exam.
    pub exam: ExamId,
    /// When its images were there: it was ready to read.
    pub ready_at: UnixMillisField,
    /// When it was claimed.
    pub claimed_at: UnixMillisField,
    /// When its final report was signed.
    pub reported_at: UnixMillisField,
    /// Its urgency in the end.
    pub priority: Priority,
    /// Its modality.
    pub modality: Text8,
    /// Its hospital.
    pub hospital: Line,
    /// Who read it.
    pub reader: Name,
    /// Where.
    pub site: SiteId,
}

impl Record for Turnaround {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "turnaround";
}

impl Turnaround {
    /// From images received to report, in milliseconds.
    pub fn total_ms(&self) -> u64 {
        self.reported_at.0.saturating_sub(self.ready_at.0)
    }

    /// From images received to claim, in milliseconds.
    pub fn waited_ms(&self) -> u64 {
        self.claimed_at.0.saturating_sub(self.ready_at.0)
    }
}

/// What to group by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Everything together.
    All,
    /// The hour at which the images were there, 0 to 23 UTC.
    Hour,
    /// The hospital.
    Hospital,
    /// The modality.
    Modality,
    /// The urgency.
    Urgency,
    /// The reader.
    Reader,
    /// The reading centre.
    Centre,
}

impl By {
    /// All, as every interface names them.
    pub const ALL: [Self; 7] =
        [Self::All, Self::Hour, Self::Hospital, Self::Modality, Self::Urgency, Self::Reader, Self::Centre];

    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Hour => "hour",
            Self::Hospital => "hospital",
            Self::Modality => "modality",
            Self::Urgency => "urgency",
            Self::Reader => "reader",
            Self::Centre => "centre",
        }
    }

    fn of(self, turnaround: &Turnaround) -> String {
        match self {
            Self::All => String::new(),
            Self::Hour => format!("{:02}", turnaround.ready_at.0 / 3_600_000 % 24),
            Self::Hospital => turnaround.hospital.to_string(),
            Self::Modality => turnaround.modality.to_string(),
            Self::Urgency => turnaround.priority.to_string(),
            Self::Reader => turnaround.reader.to_string(),
            Self::Centre => turnaround.site.to_string(),
        }
    }
}

impl std::str::FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|by| by.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is none of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// Figures of one group of reports. Times are milliseconds from images received to final report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Final reports.
    pub reports: u64,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Exact percentiles (nearest rank).
    pub p50_ms: u64,
    /// The same, 90.
    pub p90_ms: u64,
    /// The same, 95.
    pub p95_ms: u64,
    /// The same, 99.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
    /// Reports within their urgency's target.
    pub within_target: u64,
    /// Mean time from images received to claim.
    pub mean_wait_ms: f64,
}

/// Adds up reports, a group at a time. Exact: it keeps eight bytes a report.
#[derive(Debug, Default)]
pub struct Summary {
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Default)]
struct Group {
    totals: Vec<u64>,
    waited: u128,
    within_target: u64,
}

impl Summary {
    /// Counts one report.
    pub fn add(&mut self, by: By, turnaround: &Turnaround) {
        let group = self.groups.entry(by.of(turnaround)).or_default();
        let total = turnaround.total_ms();
        group.totals.push(total);
        group.waited += u128::from(turnaround.waited_ms());
        group.within_target += u64::from(total <= turnaround.priority.target_ms());
    }

    /// The figures of each group, by its name.
    pub fn figures(self) -> BTreeMap<String, Figures> {
        self.groups.into_iter().map(|(name, group)| (name, group.figures())).collect()
    }
}

impl Group {
    fn figures(mut self) -> Figures {
        self.totals.sort_unstable();
        let count = self.totals.len();
        // Nearest rank: the smallest value with at least that share at or below it.
        let percentile = |share: usize| {
            let rank = (count * share).div_ceil(100).max(1);
            self.totals.get(rank - 1).copied().unwrap_or_default()
        };
        let mean = |sum: u128| if count == 0 { 0.0 } else { sum as f64 / count as f64 };
        Figures {
            reports: count as u64,
            mean_ms: mean(self.totals.iter().map(|ms| u128::from(*ms)).sum()),
            p50_ms: percentile(50),
            p90_ms: percentile(90),
            p95_ms: percentile(95),
            p99_ms: percentile(99),
            max_ms: self.totals.last().copied().unwrap_or_default(),
            within_target: self.within_target,
            mean_wait_ms: mean(self.waited),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(total: u64, reader: &str) -> Turnaround {
        let at = |ms: u64| UnixMillisField(1_000_000 + ms);
        Turnaround {
            exam: ExamId(total),
            ready_at: at(0),
            claimed_at: at(total / 2),
            reported_at: at(total),
            priority: Priority::Vital,
            modality: Text8::fitted("CT"),
            hospital: Line::fitted("h"),
            reader: Name::fitted(reader),
            site: SiteId(1),
        }
    }

    #[test]
    fn percentiles_are_exact_by_nearest_rank() {
        let mut summary = Summary::default();
        for minutes in (1..=100).rev() {
            summary.add(By::All, &report(minutes * 60_000, "a"));
        }
        let figures = summary.figures().remove("").expect("a group");
        let minutes = |ms: u64| ms / 60_000;
        assert_eq!(figures.reports, 100);
        assert_eq!([figures.p50_ms, figures.p90_ms, figures.p95_ms, figures.p99_ms].map(minutes), [50, 90, 95, 99]);
        assert_eq!((minutes(figures.max_ms), figures.within_target), (100, 30));
        assert!(
            (figures.mean_ms / 60_000.0 - 50.5).abs() < 1e-9 && (figures.mean_wait_ms / 60_000.0 - 25.25).abs() < 1e-9
        );
    }

    #[test]
    fn groups_stand_apart_and_one_report_is_all_its_percentiles() {
        let mut summary = Summary::default();
        summary.add(By::Reader, &report(7, "a"));
        summary.add(By::Reader, &report(9, "b"));
        let figures = summary.figures();
        assert_eq!(figures.len(), 2);
        let b = &figures["b"];
        assert_eq!((b.p50_ms, b.p99_ms, b.max_ms), (9, 9, 9));
    }
}

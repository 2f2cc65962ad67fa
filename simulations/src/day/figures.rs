//! What a run comes to: the numbers that the report shows and compares.

use maillage_consensus::exam::Priority;

use super::HOUR_MS;
use super::model::{Day, Discipline, Exam};
use super::record::{Ended, Record, Run};
use super::statistics::{Summary, mean};

/// One urgency, over both disciplines.
#[derive(Debug, Clone, PartialEq)]
pub struct OfPriority {
    /// Which.
    pub priority: Priority,
    /// Exams that were to be read.
    pub exams: usize,
    /// Of these, reported within the target from the arrival of their images.
    pub met: usize,
    /// Of these, reported within the target from the end of their scan.
    pub met_from_scan: usize,
    /// End of the scan to report.
    pub from_scan: Option<Summary>,
}

/// One hour of the day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfHour {
    /// Radiology exams whose scan ended in it.
    pub exams: usize,
    /// Their mean time from the end of the scan to the report, in ms.
    pub from_scan_ms: Option<f64>,
    /// Their mean wait before the first claim, in ms.
    pub wait_ms: Option<f64>,
}

/// One centre.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfCentre {
    /// Exams reported from it.
    pub reported: usize,
    /// Mean readers holding a claim while anybody was on duty.
    pub busy: f64,
    /// Mean readers on duty over the same samples.
    pub on_duty: f64,
}

/// The figures of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Exams requested.
    pub requested: usize,
    /// Refused by the regulator.
    pub refused: usize,
    /// Reported.
    pub reported: usize,
    /// Accepted by the regulator, and not reported when the run ended.
    pub unread: usize,
    /// Claims that went back because their site was silent.
    pub returned: usize,
    /// Readings whose report came after the claim had gone back: read twice.
    pub read_twice: usize,
    /// Radiology: images received to report, the service's turnaround.
    pub turnaround: Option<Summary>,
    /// Radiology: end of the scan to report.
    pub from_scan: Option<Summary>,
    /// Radiology: ready to first claim.
    pub wait: Option<Summary>,
    /// Nuclear medicine: images received to report.
    pub nuclear: Option<Summary>,
    /// Most exams at a time that were scanned and in nobody's hands.
    pub waiting_max: u32,
    /// By urgency, in the order of `Priority::ALL`.
    pub priorities: Vec<OfPriority>,
    /// By hour of the end of the scan; a last entry for what was scanned after midnight.
    pub hours: Vec<OfHour>,
    /// By centre.
    pub centres: Vec<OfCentre>,
}

impl Figures {
    /// Of a run of this day.
    pub fn of(day: &Day, run: &Run) -> Self {
        let claims = || run.records.iter().flat_map(|record| &record.claims);
        let pairs = || day.exams.iter().zip(&run.records);
        let summary = |discipline: Discipline, duration: fn(&Record) -> Option<u64>| {
            let of = pairs().filter(|(exam, _)| exam.discipline == discipline);
            Summary::of(of.filter_map(|(_, record)| duration(record)).collect())
        };
        Self {
            requested: run.records.len(),
            refused: run.records.iter().filter(|record| record.refused).count(),
            reported: run.records.iter().filter(|record| record.reported_ms.is_some()).count(),
            unread: run.records.iter().filter(|record| !record.refused && record.reported_ms.is_none()).count(),
            returned: claims().filter(|claim| matches!(claim.ended, Some((_, Ended::Returned)))).count(),
            read_twice: claims().filter(|claim| claim.late_report_ms.is_some()).count(),
            turnaround: summary(Discipline::Radiology, Record::turnaround_ms),
            from_scan: summary(Discipline::Radiology, Record::scan_to_report_ms),
            wait: summary(Discipline::Radiology, Record::wait_ms),
            nuclear: summary(Discipline::NuclearMedicine, Record::turnaround_ms),
            waiting_max: run.waiting.iter().map(super::record::WaitingRoom::total).max().unwrap_or(0),
            priorities: Priority::ALL.map(|priority| of_priority(day, run, priority)).to_vec(),
            hours: (0..=24).map(|hour| of_hour(pairs(), hour)).collect(),
            centres: (0..day.centres.len()).map(|centre| of_centre(day, run, centre)).collect(),
        }
    }
}

fn of_priority(day: &Day, run: &Run, priority: Priority) -> OfPriority {
    let records = || {
        let of = day.exams.iter().zip(&run.records).filter(|(exam, _)| exam.priority == priority);
        of.map(|(_, record)| record).filter(|record| !record.refused)
    };
    let within = |duration: fn(&Record) -> Option<u64>| {
        records().filter(|record| duration(record).is_some_and(|taken| taken <= priority.target_ms())).count()
    };
    OfPriority {
        priority,
        exams: records().count(),
        met: within(Record::turnaround_ms),
        met_from_scan: within(Record::scan_to_report_ms),
        from_scan: Summary::of(records().filter_map(Record::scan_to_report_ms).collect()),
    }
}

fn of_hour<'a>(pairs: impl Iterator<Item = (&'a Exam, &'a Record)>, hour: u64) -> OfHour {
    let within = |record: &Record| {
        record.acquired_ms.is_some_and(|at_ms| if hour == 24 { at_ms / HOUR_MS >= 24 } else { at_ms / HOUR_MS == hour })
    };
    let of = pairs.filter(|(exam, record)| exam.discipline == Discipline::Radiology && within(record));
    let records: Vec<&Record> = of.map(|(_, record)| record).collect();
    OfHour {
        exams: records.len(),
        from_scan_ms: mean(records.iter().filter_map(|record| record.scan_to_report_ms())),
        wait_ms: mean(records.iter().filter_map(|record| record.wait_ms())),
    }
}

fn of_centre(day: &Day, run: &Run, centre: usize) -> OfCentre {
    let reported_here = |record: &&Record| record.reported_at().is_some_and(|at| at.0 == centre);
    let on_duty = |at_ms: u64| {
        let on = |reader: &&super::model::Reader| {
            reader.centre.0 == centre && (reader.from_ms..reader.until_ms).contains(&at_ms)
        };
        day.readers.iter().filter(on).count()
    };
    let (mut busy, mut duty, mut samples) = (0_u64, 0_u64, 0_u64);
    for sample in run.busy.iter().filter(|sample| sample.at_ms < super::DAY_MS) {
        let here = on_duty(sample.at_ms) as u64;
        if here > 0 {
            busy += u64::from(sample.seats.get(centre).copied().unwrap_or(0));
            duty += here;
            samples += 1;
        }
    }
    let over = |sum: u64| if samples == 0 { 0.0 } else { sum as f64 / samples as f64 };
    OfCentre { reported: run.records.iter().filter(reported_here).count(), busy: over(busy), on_duty: over(duty) }
}

#[cfg(test)]
mod tests {
    use super::Figures;
    use crate::day::central;
    use crate::day::model::{Day, Parameters};
    use crate::day::scenario::Scenario;

    #[test]
    fn every_exam_is_counted_once_in_every_breakdown() {
        let day = Day::draw(&Parameters::default(), 5, true);
        let figures = Figures::of(&day, &central::run(&day, &Scenario::named("bad-night", &day).unwrap()));
        assert_eq!(figures.requested, day.exams.len());
        assert_eq!(figures.requested, figures.refused + figures.reported + figures.unread);
        assert_eq!(figures.priorities.iter().map(|of| of.exams).sum::<usize>(), figures.requested - figures.refused);
        assert_eq!(figures.centres.iter().map(|of| of.reported).sum::<usize>(), figures.reported);
        let radiology = figures.turnaround.unwrap().count;
        assert_eq!(figures.hours.iter().map(|of| of.exams).sum::<usize>(), radiology);
        assert_eq!(radiology + figures.nuclear.unwrap().count, figures.reported);
    }

    #[test]
    fn a_lost_cloud_shows_from_the_scan_and_hides_from_the_arrival() {
        let day = Day::draw(&Parameters::default(), 5, true);
        let figures = |name| Figures::of(&day, &central::run(&day, &Scenario::named(name, &day).unwrap()));
        let (calm, lost) = (figures("none"), figures("cloud-lost"));
        let max = |figures: &Figures| figures.from_scan.unwrap().max_ms;
        assert!(max(&lost) > max(&calm) + 3_600_000, "{} and {}", max(&lost), max(&calm));
        assert!(lost.waiting_max > calm.waiting_max);
        let met = |figures: &Figures| figures.priorities.iter().map(|of| of.met_from_scan).sum::<usize>();
        assert!(met(&lost) < met(&calm));
    }
}

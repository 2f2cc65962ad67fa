//! What a run of a day leaves behind: what happened to each exam, and how full the rooms were.
//!
//! A driver fills it, of the mesh or of a central server; everything that is said of a run is computed from
//! it. `Run::check` holds it against its day, so that a driver's slip is an error and not a nice plot.

use maillage_consensus::exam::Priority;
use serde::{Deserialize, Serialize};

use super::model::{CentreId, Day, Exam, ReaderId};

/// Where images lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// At a reading centre.
    Centre(CentreId),
    /// In the central cloud.
    Cloud,
}

/// How a claim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// With the exam's report.
    Reported,
    /// Its site was silent: it went back to the waiting room.
    Returned,
}

/// One claim of an exam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// By whom.
    pub reader: ReaderId,
    /// Where.
    pub centre: CentreId,
    /// When it was granted, in ms.
    pub claimed_ms: u64,
    /// When and how it ended, as the queue decided and not as the reader learned; `None` while it lasts.
    pub ended: Option<(u64, Ended)>,
    /// When its report arrived although the claim had ended: the exam was read twice. In ms.
    pub late_report_ms: Option<u64>,
}

/// What happened to one exam.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// When it was asked for, in ms.
    pub requested_ms: u64,
    /// When the regulator had decided, in ms.
    pub regulated_ms: Option<u64>,
    /// Whether the regulator refused it: then nothing follows.
    pub refused: bool,
    /// When its scan ended, in ms.
    pub acquired_ms: Option<u64>,
    /// When its images had arrived, in ms, and where.
    pub received: Option<(u64, Place)>,
    /// When it could be claimed, in ms.
    pub ready_ms: Option<u64>,
    /// Its claims, in order.
    pub claims: Vec<Claim>,
    /// When its report was accepted, in ms; `None` when it was not read.
    pub reported_ms: Option<u64>,
}

impl Record {
    /// What is known of an exam before any system had a hand in it: request, regulation, scan.
    pub fn drawn(exam: &Exam) -> Self {
        Self {
            requested_ms: exam.requested_ms,
            regulated_ms: Some(exam.regulated_ms()),
            refused: exam.refused.is_some(),
            acquired_ms: exam.acquired_ms(),
            ..Self::default()
        }
    }

    /// Images received to report, in ms: the service's own measure of turnaround.
    pub fn turnaround_ms(&self) -> Option<u64> {
        Some(self.reported_ms?.saturating_sub(self.received?.0))
    }

    /// End of the scan to report, in ms: what the emergency ward waits for. Images that can't leave the
    /// hospital count here, and only here.
    pub fn scan_to_report_ms(&self) -> Option<u64> {
        Some(self.reported_ms?.saturating_sub(self.acquired_ms?))
    }

    /// Ready to first claim, in ms.
    pub fn wait_ms(&self) -> Option<u64> {
        Some(self.claims.first()?.claimed_ms.saturating_sub(self.ready_ms?))
    }

    /// The centre that its report came from.
    pub fn reported_at(&self) -> Option<CentreId> {
        let reported = |claim: &&Claim| matches!(claim.ended, Some((_, Ended::Reported)));
        self.claims.iter().find(reported).map(|claim| claim.centre)
    }
}

/// How many exams are unread and in nobody's hands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitingRoom {
    /// When, in ms.
    pub at_ms: u64,
    /// In the waiting room, by urgency in the order of `Priority::ALL`.
    pub waiting: [u32; 4],
    /// Scanned, but the images have not arrived: nobody can see that they wait.
    pub on_the_way: u32,
}

impl WaitingRoom {
    /// All of them.
    pub fn total(&self) -> u32 {
        self.waiting.iter().sum::<u32>() + self.on_the_way
    }

    fn add(&mut self, exam: &Exam, record: &Record) {
        if record.ready_ms.is_some_and(|ready_ms| ready_ms <= self.at_ms) {
            let place = Priority::ALL.iter().position(|priority| *priority == exam.priority).unwrap_or(0);
            self.waiting[place] += 1;
        } else {
            self.on_the_way += 1;
        }
    }
}

/// Readers who hold a claim at one moment, by centre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// When, in ms.
    pub at_ms: u64,
    /// By index of the centre.
    pub seats: Vec<u32>,
}

/// A run of a day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Run {
    /// What happened to each exam, in the day's order.
    pub records: Vec<Record>,
    /// The waiting room over time.
    pub waiting: Vec<WaitingRoom>,
    /// Seats over time.
    pub busy: Vec<Busy>,
    /// When the run ended, in ms.
    pub ended_ms: u64,
}

/// What is wrong with a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Records and exams are not one to one.
    #[error("the run has {records} records for {exams} exams")]
    Count {
        /// In the run.
        records: usize,
        /// In the day.
        exams: usize,
    },
    /// An exam's record contradicts itself or its day.
    #[error("the record of exam {exam}: {what}")]
    Record {
        /// Index of the exam.
        exam: usize,
        /// In what.
        what: &'static str,
    },
    /// Samples are out of order, or for other centres.
    #[error("the samples of {0} are not in order, or not of this day's centres")]
    Samples(&'static str),
}

impl Run {
    /// Samples waiting room and seats from the records, every `step_ms`: for drivers that do not look into
    /// the rooms while they run.
    pub fn sample(&mut self, day: &Day, step_ms: u64) {
        let mut waiting = Vec::new();
        let mut busy = Vec::new();
        for at_ms in (0..=self.ended_ms).step_by(usize::try_from(step_ms.max(1)).unwrap_or(usize::MAX)) {
            waiting.push(WaitingRoom { at_ms, ..WaitingRoom::default() });
            busy.push(Busy { at_ms, seats: vec![0; day.centres.len()] });
        }
        for (exam, record) in day.exams.iter().zip(&self.records) {
            let Some(acquired_ms) = record.acquired_ms else { continue };
            // From here on the exam is unread and in nobody's hands, unless a claim says otherwise.
            let mut free_ms = acquired_ms;
            for claim in &record.claims {
                let until_ms = claim.ended.map_or(u64::MAX, |(ended_ms, _)| ended_ms);
                within(
                    &mut busy,
                    |sample| sample.at_ms,
                    (claim.claimed_ms, until_ms),
                    |sample| {
                        sample.seats.get_mut(claim.centre.0).into_iter().for_each(|seats| *seats += 1);
                    },
                );
                within(&mut waiting, |sample| sample.at_ms, (free_ms, claim.claimed_ms), |room| room.add(exam, record));
                free_ms = until_ms;
            }
            let until_ms = record.reported_ms.unwrap_or(u64::MAX);
            within(&mut waiting, |sample| sample.at_ms, (free_ms, until_ms), |room| room.add(exam, record));
        }
        (self.waiting, self.busy) = (waiting, busy);
    }

    /// Holds the run against its day.
    ///
    /// # Errors
    /// The first contradiction: a record whose times do not follow each other, a claim by somebody who may
    /// not read the exam, a report without its claim, samples out of order.
    pub fn check(&self, day: &Day) -> Result<(), RunError> {
        if self.records.len() != day.exams.len() {
            return Err(RunError::Count { records: self.records.len(), exams: day.exams.len() });
        }
        for (exam, record) in self.records.iter().enumerate() {
            contradiction(day, exam, record).map_or(Ok(()), |what| Err(RunError::Record { exam, what }))?;
        }
        if !self.waiting.is_sorted_by_key(|sample| sample.at_ms) {
            return Err(RunError::Samples("the waiting room"));
        }
        let whole = self.busy.iter().all(|sample| sample.seats.len() == day.centres.len());
        if !whole || !self.busy.is_sorted_by_key(|sample| sample.at_ms) {
            return Err(RunError::Samples("the seats"));
        }
        Ok(())
    }
}

/// Acts on the samples from the first time to before the second.
fn within<T>(samples: &mut [T], at: impl Fn(&T) -> u64, (from_ms, until_ms): (u64, u64), mut act: impl FnMut(&mut T)) {
    let first = samples.partition_point(|sample| at(sample) < from_ms);
    for sample in samples[first..].iter_mut().take_while(|sample| at(sample) < until_ms) {
        act(sample);
    }
}

fn contradiction(day: &Day, exam: usize, record: &Record) -> Option<&'static str> {
    let drawn = &day.exams[exam];
    let steps = [
        Some(record.requested_ms),
        record.acquired_ms,
        record.received.map(|(at_ms, _)| at_ms),
        record.ready_ms,
        record.claims.first().map(|claim| claim.claimed_ms),
        record.reported_ms,
    ];
    let known: Vec<u64> = steps.iter().copied().map_while(std::convert::identity).collect();
    let reports = record.claims.iter().filter(|claim| matches!(claim.ended, Some((_, Ended::Reported)))).count();
    let may_read = |claim: &Claim| {
        let reader = day.readers.get(claim.reader.0);
        reader.is_some_and(|reader| reader.discipline == drawn.discipline && reader.centre == claim.centre)
    };
    let follow = |pair: &[Claim]| pair[0].ended.is_some_and(|(ended_ms, _)| ended_ms <= pair[1].claimed_ms);
    let wrong = [
        (record.requested_ms != drawn.requested_ms, "it was requested at another time than drawn"),
        (record.refused != drawn.refused.is_some(), "the regulator decided otherwise than drawn"),
        (record.refused && record.acquired_ms.is_some(), "it was scanned although refused"),
        (steps.iter().flatten().count() != known.len(), "a step is missing before one that happened"),
        (!known.is_sorted(), "its steps are not in the order of time"),
        (record.reported_ms.is_some() != (reports == 1), "its report and the end of its claims do not agree"),
        (reports > 1, "it was reported twice"),
        (!record.claims.iter().all(may_read), "it was claimed by somebody who may not read it, or elsewhere"),
        (!record.claims.windows(2).all(follow), "two held it at a time"),
    ];
    wrong.into_iter().find(|(is_wrong, _)| *is_wrong).map(|(_, what)| what)
}

#[cfg(test)]
mod tests {
    use super::{Ended, Run, RunError};
    use crate::day::central;
    use crate::day::model::{Day, Discipline, Parameters};
    use crate::day::scenario::Scenario;

    fn run() -> (Day, Run) {
        let day = Day::draw(&Parameters::default(), 2, false);
        let run = central::run(&day, &Scenario::none());
        (day, run)
    }

    #[test]
    fn a_true_run_passes_and_every_slip_is_seen() {
        let (day, good) = run();
        assert_eq!(good.check(&day), Ok(()));
        let at = good.records.iter().position(|record| record.reported_ms.is_some()).unwrap();
        let other = day.readers.iter().position(|reader| reader.discipline != day.exams[at].discipline).unwrap();
        type Slip<'a> = &'a dyn Fn(&mut Run);
        let slips: [(&str, Slip<'_>); 7] = [
            ("another time", &|run| run.records[at].requested_ms += 1),
            ("otherwise than drawn", &|run| run.records[at].refused = true),
            ("a step is missing", &|run| run.records[at].ready_ms = None),
            ("order of time", &|run| run.records[at].ready_ms = Some(1)),
            ("do not agree", &|run| run.records[at].claims[0].ended = Some((0, Ended::Returned))),
            ("may not read", &|run| run.records[at].claims[0].reader.0 = other),
            ("two held it", &|run| {
                let claim = run.records[at].claims[0];
                run.records[at].claims.insert(0, super::Claim { ended: None, ..claim });
            }),
        ];
        for (expected, slip) in slips {
            let mut run = good.clone();
            slip(&mut run);
            let error = run.check(&day).unwrap_err();
            assert!(matches!(error, RunError::Record { what, .. } if what.contains(expected)), "{expected}: {error}");
        }
        let mut run = good.clone();
        run.records.pop();
        assert!(matches!(run.check(&day), Err(RunError::Count { .. })));
        let mut run = good;
        run.busy[0].seats.pop();
        assert_eq!(run.check(&day), Err(RunError::Samples("the seats")));
    }

    #[test]
    fn samples_count_what_nobody_holds() {
        let (day, run) = run();
        // Whoever is neither waiting, on the way, held nor reported has not been scanned.
        for sample in run.waiting.iter().step_by(97) {
            let at = sample.at_ms;
            let scanned = run.records.iter().filter(|record| record.acquired_ms.is_some_and(|time| time <= at)).count();
            let reported =
                run.records.iter().filter(|record| record.reported_ms.is_some_and(|time| time <= at)).count();
            let held: u32 = run.busy.iter().find(|busy| busy.at_ms == at).unwrap().seats.iter().sum();
            assert_eq!(scanned, reported + (held + sample.total()) as usize, "at {at}");
        }
        assert!(day.exams.iter().any(|exam| exam.discipline == Discipline::NuclearMedicine));
    }
}

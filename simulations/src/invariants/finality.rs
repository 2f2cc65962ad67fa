//! I3 for exams and reports, and I4: what was acknowledged is there, and a completion is final, on
//! every node whose state has reached it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use maillage_consensus::View;
use maillage_consensus::exam::{ExamState, Report, ReportKind};
use maillage_consensus::ids::ExamId;

use crate::cluster::Running;
use crate::rng::Rng;
use crate::world::{World, lock};

/// Exams looked at on each node each time, besides the last look at all.
const SAMPLE: usize = 30;

/// A completion that a client was told of.
#[derive(Debug, Clone)]
pub(crate) struct Completed {
    pub(crate) exam: u64,
    /// A log index at which it had been applied.
    pub(crate) index: u64,
    pub(crate) token: u64,
    pub(crate) report: u32,
    pub(crate) text: String,
}

#[derive(Default)]
struct Told {
    exams: BTreeMap<u64, u64>,
    completed: BTreeMap<u64, Completed>,
    rng: Option<Rng>,
}

/// See the module.
pub(crate) struct Finality {
    world: Arc<World>,
    told: Mutex<Told>,
}

impl Finality {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        let told = Told { rng: Some(Rng::stream(seed, "finality")), ..Told::default() };
        Self { world, told: Mutex::new(told) }
    }

    /// A client was told that `exam` exists, by an answer at `index`.
    pub(crate) fn exam_added(&self, exam: u64, index: u64) {
        lock(&self.told).exams.entry(exam).or_insert(index);
    }

    pub(crate) fn completed(&self, completed: Completed) {
        let exam = completed.exam;
        if let Some(before) = lock(&self.told).completed.insert(exam, completed.clone()) {
            let detail = format!("exam {exam} was completed twice: {before:?} and {completed:?}");
            self.world.violation("I4", detail);
        }
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        let told = lock(&self.told);
        (told.exams.len(), told.completed.len())
    }

    /// Looks at what a node shows of what clients were told; with `all`, of a node that has applied
    /// everything, at all of it.
    pub(crate) fn check(&self, running: &Running, all: bool) {
        let applied = if all { u64::MAX } else { running.group.applied() };
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (exams, completed) = {
            let mut told = lock(&self.told);
            let mut rng = told.rng.take().unwrap_or_else(|| Rng::new(0));
            let mut exams: Vec<(u64, u64)> = told.exams.iter().map(|(exam, index)| (*exam, *index)).collect();
            let mut completed: Vec<Completed> = told.completed.values().cloned().collect();
            if !all {
                rng.shuffle(&mut exams);
                rng.shuffle(&mut completed);
                exams.truncate(SAMPLE);
                completed.truncate(SAMPLE);
            }
            told.rng = Some(rng);
            (exams, completed)
        };
        for (exam, _) in exams.iter().filter(|(_, index)| *index <= applied) {
            if !matches!(view.exam(ExamId(*exam)), Ok(Some(_))) {
                self.world.violation("I3", format!("{:?} lost exam {exam}", running.owner));
            }
        }
        for completed in completed.iter().filter(|completed| completed.index <= applied) {
            self.check_completed(running, &view, completed);
        }
    }

    fn check_completed(&self, running: &Running, view: &View<'_>, told: &Completed) {
        let id = ExamId(told.exam);
        let state = view.exam(id).ok().flatten().map(|exam| exam.state);
        if !state.is_some_and(ExamState::is_reported) {
            let detail =
                format!("{:?}: exam {} is {state:?} after its completion was acknowledged", running.owner, told.exam);
            self.world.violation("I4", detail);
        }
        let reports = view.reports(id).unwrap_or_default();
        // Preliminary ones before it and addenda after it stand beside it.
        let is_final = |report: &&Report| !report.stale && report.signed.kind == ReportKind::Final;
        let standing: Vec<_> = reports.iter().filter(is_final).collect();
        let same = |report: &Report| {
            report.number == told.report && report.token.0 == told.token && report.text.as_str() == told.text
        };
        if standing.len() != 1 || !standing.iter().all(|report| same(report)) {
            let detail = format!(
                "{:?}: exam {} has {} final reports, not the one acknowledged",
                running.owner,
                told.exam,
                standing.len()
            );
            self.world.violation("I3", detail);
        }
    }
}

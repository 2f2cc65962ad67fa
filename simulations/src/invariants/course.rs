//! What became of an exam besides its claim: every text that somebody was told is kept is kept as it was;
//! a delivery is undone only by an addendum; who was told of a critical result stays told; what the patient
//! refused is read nowhere else; and an exam that is held has one reading in progress.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use maillage_consensus::View;
use maillage_consensus::exam::{ExamState, ReportKind, WorkitemKind, WorkitemState};
use maillage_consensus::ids::ExamId;
use maillage_consensus::remark::What;

use crate::cluster::Running;
use crate::rng::Rng;
use crate::world::{World, lock};

/// Facts of each kind looked at on each node each time, besides the last look at all.
const SAMPLE: usize = 25;
/// Held exams looked at.
const HELD: usize = 200;

/// A text of which its author was told under which number it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) exam: u64,
    pub(crate) number: u32,
    pub(crate) text: String,
    /// Whether it is a draft under a lost claim.
    pub(crate) stale: bool,
    /// A log index at which it had been applied.
    pub(crate) index: u64,
}

/// Something done to a numbered part of an exam.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) exam: u64,
    pub(crate) number: u32,
    pub(crate) index: u64,
}

#[derive(Default)]
struct Facts {
    kept: Vec<Kept>,
    delivered: Vec<Done>,
    told: Vec<Done>,
    confined: BTreeSet<u64>,
    rng: Option<Rng>,
}

/// See the module.
pub(crate) struct Course {
    world: Arc<World>,
    facts: Mutex<Facts>,
}

impl Course {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        let facts = Facts { rng: Some(Rng::stream(seed, "course")), ..Facts::default() };
        Self { world, facts: Mutex::new(facts) }
    }

    /// A client was told that a text is kept.
    pub(crate) fn kept(&self, kept: Kept) {
        if kept.stale {
            self.world.sometimes("a draft under a lost claim was kept");
        }
        lock(&self.facts).kept.push(kept);
    }

    /// … that a report is delivered.
    pub(crate) fn delivered(&self, done: Done) {
        lock(&self.facts).delivered.push(done);
    }

    /// … that somebody was told of a critical result.
    pub(crate) fn told(&self, done: Done) {
        lock(&self.facts).told.push(done);
    }

    /// The patient refused that images of the exam leave their site, which has none.
    pub(crate) fn confined(&self, exam: u64) {
        lock(&self.facts).confined.insert(exam);
    }

    /// A claim was granted.
    pub(crate) fn granted(&self, exam: u64, site: u64) {
        if lock(&self.facts).confined.contains(&exam) {
            let detail = format!("exam {exam}, which the patient keeps to their hospital, was granted to site {site}");
            self.world.violation("consent", detail);
        }
    }

    /// Looks at what a node shows of what clients were told; with `all`, at all of it.
    pub(crate) fn check(&self, running: &Running, all: bool) {
        let applied = if all { u64::MAX } else { running.group.applied() };
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (kept, delivered, told) = self.sample(all);
        for kept in kept.iter().filter(|kept| kept.index <= applied) {
            self.check_kept(running, &view, kept);
        }
        for done in delivered.iter().filter(|done| done.index <= applied) {
            self.check_delivered(running, &view, done);
        }
        for done in told.iter().filter(|done| done.index <= applied) {
            let remarks = view.remarks(ExamId(done.exam)).unwrap_or_default();
            let remark = remarks.iter().find(|remark| remark.number == done.number);
            let is_told =
                remark.is_some_and(|remark| matches!(&remark.what, What::Critical(what) if what.told.is_some()));
            if !is_told {
                let detail = format!("{:?}: exam {} critical {} is not told", running.owner, done.exam, done.number);
                self.world.violation("care", detail);
            }
        }
        self.one_reading_is_in_progress(running, &view);
    }

    fn sample(&self, all: bool) -> (Vec<Kept>, Vec<Done>, Vec<Done>) {
        let mut facts = lock(&self.facts);
        let mut rng = facts.rng.take().unwrap_or_else(|| Rng::new(0));
        let (mut kept, mut delivered, mut told) = (facts.kept.clone(), facts.delivered.clone(), facts.told.clone());
        if !all {
            rng.shuffle(&mut kept);
            rng.shuffle(&mut delivered);
            rng.shuffle(&mut told);
            kept.truncate(SAMPLE);
            delivered.truncate(SAMPLE);
            told.truncate(SAMPLE);
        }
        facts.rng = Some(rng);
        (kept, delivered, told)
    }

    fn check_kept(&self, running: &Running, view: &View<'_>, kept: &Kept) {
        let reports = view.reports(ExamId(kept.exam)).unwrap_or_default();
        let found = reports.iter().find(|report| report.number == kept.number);
        if found.is_none_or(|report| report.text.as_str() != kept.text || report.stale != kept.stale) {
            let detail = format!("{:?}: exam {} report {} is not what was kept", running.owner, kept.exam, kept.number);
            self.world.violation("I3", detail);
        }
    }

    fn check_delivered(&self, running: &Running, view: &View<'_>, done: &Done) {
        let id = ExamId(done.exam);
        let Ok(Some(exam)) = view.exam(id) else { return };
        let stands = match exam.state {
            ExamState::Delivered | ExamState::FollowedUp | ExamState::Purged => true,
            // A later addendum is to be delivered, too.
            ExamState::Reported => view
                .reports(id)
                .unwrap_or_default()
                .iter()
                .any(|report| report.number > done.number && report.signed.kind == ReportKind::Addendum),
            _ => false,
        };
        if !stands {
            let detail = format!("{:?}: exam {} is {} after its delivery", running.owner, done.exam, exam.state);
            self.world.violation("I4", detail);
        }
    }

    fn one_reading_is_in_progress(&self, running: &Running, view: &View<'_>) {
        for exam in view.claimed(HELD).unwrap_or_default() {
            let items = view.workitems(exam.id).unwrap_or_default();
            let open: BTreeMap<u32, _> = items
                .iter()
                .filter(|item| item.step.kind == WorkitemKind::Read && item.state == WorkitemState::InProgress)
                .map(|item| (item.number, item.performer.as_ref().map(|claim| claim.token)))
                .collect();
            let held = exam.claim.as_ref().map(|claim| claim.token);
            if open.len() != 1 || open.get(&exam.workitem) != Some(&held) {
                let detail = format!("{:?}: exam {} has readings {open:?} in progress", running.owner, exam.id);
                self.world.violation("I1", detail);
            }
        }
    }
}

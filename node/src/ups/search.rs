//! *Search* (PS3.18 section 11.9): which workitems match, in which order, and what of them is returned.
//!
//! There may be millions of exams and there is an index of few of their attributes. A query for a UID or
//! an accession number goes straight to it. Any other first sees what is open, in the order in which it
//! is to be read, and then all exams, the newest first, up to a bound. What lies beyond is said to be
//! left out, never taken for absent.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Exam, Workitem};
use maillage_consensus::ids::ExamId;
use maillage_consensus::machine::ApplyError;
use serde_json::Value;

use super::dataset::Dataset;
use super::describe::Scene;
use super::query::Query;
use super::tags;

/// Open exams looked at first; a waiting room holds tens of them.
const OPEN_MAX: usize = 5_000;
/// Exams looked at by one query: about a month of the group's, in a second or two.
const EXAMS_MAX: usize = 30_000;
/// Exams read at once.
const PAGE: usize = 256;

/// Returned only when asked for: what has no return key of type 1 or 2 (PS3.4 table CC.2.5-3).
const ON_REQUEST: [u32; 2] = [tags::PERFORMED_PROCEDURE, tags::SPECIFIC_CHARACTER_SET];

/// Always returned, as far as they are there.
const RETURNED: [u32; 32] = [
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::PRIORITY,
    tags::MODIFICATION_DATE_TIME,
    tags::PROCEDURE_STEP_LABEL,
    tags::WORKLIST_LABEL,
    tags::PROCESSING_PARAMETERS,
    tags::STATION_NAME_CODES,
    tags::STATION_CLASS_CODES,
    tags::STATION_LOCATION_CODES,
    tags::SCHEDULED_HUMAN_PERFORMERS,
    tags::START_DATE_TIME,
    tags::EXPECTED_COMPLETION_DATE_TIME,
    tags::WORKITEM_CODES,
    tags::COMMENTS_ON_STEP,
    tags::INPUT_READINESS_STATE,
    tags::INPUT_INFORMATION,
    tags::STUDY_INSTANCE_UID,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::OTHER_PATIENT_IDS,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::ADMISSION_ID,
    tags::ISSUER_OF_ADMISSION_ID,
    tags::ADMITTING_DIAGNOSES_DESCRIPTION,
    tags::ADMITTING_DIAGNOSES_CODES,
    tags::REFERENCED_REQUESTS,
    tags::REPLACED_STEPS,
    tags::PROCEDURE_STEP_STATE,
    tags::PROGRESS_INFORMATION,
];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The results.
    pub(crate) results: Vec<Value>,
    /// Whether there are more, or may be.
    pub(crate) more: bool,
}

/// Searches a view of the state. `newest` is a number that no exam reaches.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn search(
    view: &View<'_>,
    scene: &Scene,
    query: &Query,
    now: UnixMillisField,
    newest: ExamId,
) -> Result<Found, ApplyError> {
    let mut walk = Walk { view, scene, query, seen: BTreeSet::new(), passed: 0, found: Found::default() };
    if let Some(uids) = query.exactly(&[tags::SOP_INSTANCE_UID]) {
        for uid in uids.split([',', '\\']) {
            if let Some((exam, workitem)) = find(view, scene, uid.trim())?
                && walk.look_at(&exam, &workitem)?.is_break()
            {
                break;
            }
        }
        return Ok(walk.found);
    }
    if let Some(accession) = query.exactly(&[tags::REFERENCED_REQUESTS, tags::ACCESSION_NUMBER]) {
        for exam in view.exams_with_accession(accession)? {
            if walk.visit(&exam)?.is_break() {
                break;
            }
        }
        return Ok(walk.found);
    }
    for exams in [view.waiting(now, OPEN_MAX)?, view.claimed(OPEN_MAX)?, view.to_regulate(OPEN_MAX)?] {
        for exam in exams {
            if walk.visit(&exam)?.is_break() {
                return Ok(walk.found);
            }
        }
    }
    let (mut before, mut looked_at) = (newest, 0);
    loop {
        let page = view.exams_back(before, PAGE)?;
        let Some(last) = page.last() else { return Ok(walk.found) };
        before = last.id;
        for exam in &page {
            if walk.visit(exam)?.is_break() {
                return Ok(walk.found);
            }
        }
        looked_at += page.len();
        if looked_at >= EXAMS_MAX {
            walk.found.more = true;
            return Ok(walk.found);
        }
    }
}

/// The workitem with a UID, and its exam.
///
/// # Errors
/// The state cannot be read.
pub(crate) fn find(view: &View<'_>, scene: &Scene, uid: &str) -> Result<Option<(Exam, Workitem)>, ApplyError> {
    let at = match view.workitem_named(uid)? {
        Some(at) => Some(at),
        None => scene.uids.parse(uid),
    };
    let Some((exam, number)) = at else { return Ok(None) };
    let found = view.exam(exam)?.zip(view.workitem(exam, number)?);
    // A workitem that a client named has no other name.
    Ok(found.filter(|(_, workitem)| scene.uids.of(workitem) == uid))
}

struct Walk<'w> {
    view: &'w View<'w>,
    scene: &'w Scene,
    query: &'w Query,
    seen: BTreeSet<ExamId>,
    passed: usize,
    found: Found,
}

impl Walk<'_> {
    /// All workitems of an exam, once.
    fn visit(&mut self, exam: &Exam) -> Result<ControlFlow<()>, ApplyError> {
        if !self.seen.insert(exam.id) {
            return Ok(ControlFlow::Continue(()));
        }
        for workitem in self.view.workitems(exam.id)? {
            if self.look_at(exam, &workitem)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn look_at(&mut self, exam: &Exam, workitem: &Workitem) -> Result<ControlFlow<()>, ApplyError> {
        let dataset = self.scene.describe(self.view, exam, workitem)?;
        if !self.query.matches(&dataset) {
            return Ok(ControlFlow::Continue(()));
        }
        if self.passed < self.query.offset {
            self.passed += 1;
            return Ok(ControlFlow::Continue(()));
        }
        if self.found.results.len() == self.query.limit {
            self.found.more = true;
            return Ok(ControlFlow::Break(()));
        }
        self.found.results.push(returned(self.query, dataset).into_json());
        Ok(ControlFlow::Continue(()))
    }
}

/// What of a data set a query is answered with.
fn returned(query: &Query, mut dataset: Dataset) -> Dataset {
    let Some(fields) = &query.fields else {
        dataset.remove(tags::SPECIFIC_CHARACTER_SET);
        return dataset;
    };
    let asked = |tag: u32| {
        let keys = query.keys.iter().map(|(path, _)| path);
        keys.chain(fields).any(|path| path.first() == Some(&tag))
    };
    dataset.retain(|tag| asked(tag) || (RETURNED.contains(&tag) && !ON_REQUEST.contains(&tag)));
    dataset
}

//! Earlier exams of the same patients: an index by the patient's identifier, made from the state as it grows.

use std::collections::BTreeMap;

use maillage_consensus::View;
use maillage_consensus::exam::Exam;
use maillage_consensus::ids::ExamId;
use maillage_consensus::machine::ApplyError;

/// Exams read from the state in one round: a new node comes to know a year's exams in a few minutes.
const EXAMS_PER_ROUND: usize = 4096;
const PAGE: usize = 512;
/// Priors of one exam: a reader compares with the last one or two.
pub(super) const PRIORS_MAX: usize = 3;

/// Which exams a patient's identifier names. Only a hash of it is kept, and each is read again before it is used.
#[derive(Debug, Default)]
pub(super) struct Priors {
    by_patient: BTreeMap<u64, Vec<ExamId>>,
    /// All exams up to this one are in it.
    known: Option<ExamId>,
}

impl Priors {
    /// Takes in exams that were added since.
    pub(super) fn advance(&mut self, view: &View<'_>) -> Result<(), ApplyError> {
        for _ in 0..EXAMS_PER_ROUND / PAGE {
            let page = view.exams(self.known, None, PAGE)?;
            for exam in &page {
                self.known = Some(exam.id);
                if !exam.request.patient.id.is_empty() {
                    self.by_patient.entry(key_of(exam)).or_default().push(exam.id);
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        Ok(())
    }

    /// The patient's other exams of which the mesh still has images, those of the same modality first, the newest
    /// first.
    pub(super) fn of(&self, view: &View<'_>, exam: &Exam) -> Result<Vec<Exam>, ApplyError> {
        if exam.request.patient.id.is_empty() {
            return Ok(Vec::new());
        }
        let mut priors = Vec::new();
        for id in self.by_patient.get(&key_of(exam)).into_iter().flatten().rev().filter(|id| **id != exam.id) {
            let Some(prior) = view.exam(*id)? else { continue };
            let is_theirs = prior.request.patient.same_as(&exam.request.patient);
            if is_theirs && prior.reconciled_into.is_none() && !prior.studies.is_empty() && !prior.state.is_off() {
                priors.push(prior);
            }
        }
        priors.sort_by_key(|prior| prior.request.modality != exam.request.modality);
        priors.truncate(PRIORS_MAX);
        Ok(priors)
    }
}

fn key_of(exam: &Exam) -> u64 {
    let hash = blake3::hash(exam.request.patient.id.as_str().as_bytes());
    hash.as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

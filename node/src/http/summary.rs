//! One exam as lists show it: the exam itself, and what of its images is where.

use std::collections::BTreeMap;

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Claim, Exam};
use maillage_consensus::ids::{Name, SiteId};
use maillage_consensus::machine::ApplyError;
use serde_json::{Value, json};

use super::rfc3339::rfc3339;

/// An exam with what a list needs beside it.
#[derive(Debug, Clone)]
pub(crate) struct ExamSummary {
    /// The exam.
    pub(crate) exam: Exam,
    /// The fewest copies that any of its images has; `None` when it has no images yet.
    pub(crate) copies: Option<usize>,
    /// Whether this site holds all of its images.
    pub(crate) here: bool,
    /// Copies wanted.
    pub(crate) copies_wanted: u8,
    /// The name of the site that holds the claim.
    pub(crate) claim_site: Option<Name>,
}

/// Makes summaries from one view.
#[derive(Debug)]
pub(crate) struct Summaries<'a> {
    view: &'a View<'a>,
    site: SiteId,
    names: BTreeMap<SiteId, Name>,
    copies_wanted: u8,
}

impl<'a> Summaries<'a> {
    /// Summaries of `view` as the node of `site` sees it.
    ///
    /// # Errors
    /// The state cannot be read, here and below.
    pub(crate) fn new(view: &'a View<'a>, site: SiteId) -> Result<Self, ApplyError> {
        let names = view.sites()?.into_iter().map(|site| (site.id, site.description.name)).collect();
        let copies_wanted = view.mesh()?.map_or(0, |mesh| mesh.copies);
        Ok(Self { view, site, names, copies_wanted })
    }

    /// The summary of one exam.
    pub(crate) fn of(&self, exam: Exam) -> Result<ExamSummary, ApplyError> {
        let (mut copies, mut here) = (None::<usize>, !exam.studies.is_empty());
        for uid in &exam.studies {
            let study = self.view.study(uid.as_str())?;
            let parts = study.as_ref().map_or(&[][..], |study| &study.parts);
            let own = study.as_ref().map_or(0, maillage_consensus::mesh::Study::copies);
            copies = Some(copies.map_or(own, |least| least.min(own)));
            here &= !parts.is_empty() && parts.iter().all(|held| held.holders.contains(&self.site));
        }
        let claim_site = exam.claim.as_ref().map(|claim| self.name(claim.site));
        Ok(ExamSummary { exam, copies, here, copies_wanted: self.copies_wanted, claim_site })
    }

    /// Summaries of several.
    pub(crate) fn of_all(&self, exams: Vec<Exam>) -> Result<Vec<ExamSummary>, ApplyError> {
        exams.into_iter().map(|exam| self.of(exam)).collect()
    }

    /// A site's name; its number when it is not known.
    pub(crate) fn name(&self, site: SiteId) -> Name {
        self.names.get(&site).cloned().unwrap_or_else(|| Name::fitted(&site.to_string()))
    }
}

impl ExamSummary {
    /// Whether it is still to be read and its report is overdue.
    pub(crate) fn overdue(&self, now: UnixMillisField) -> bool {
        self.exam.is_open() && self.exam.due_at.is_some_and(|due| due < now)
    }

    /// As the API gives it.
    pub(crate) fn to_json(&self, now: UnixMillisField) -> Value {
        let (exam, request) = (&self.exam, &self.exam.request);
        json!({
            "id": exam.id,
            "state": exam.state.as_str(),
            "priority": request.priority.as_str(),
            "accession": request.accession,
            "patient": {
                "id": request.patient.id,
                "issuer": request.patient.issuer,
                "name": request.patient.name,
                "birth_date": request.patient.birth_date,
                "sex": request.patient.sex,
            },
            "modality": request.modality,
            "description": request.description,
            "hospital": request.hospital,
            "physician": request.physician,
            "awaits_images": request.awaits_images,
            "added_at": rfc3339(exam.added_at),
            "ready_at": exam.ready_at.map(rfc3339),
            "due_at": exam.due_at.map(rfc3339),
            "ended_at": exam.ended_at.map(rfc3339),
            "overdue": self.overdue(now),
            "studies": exam.studies,
            "copies": self.copies,
            "copies_wanted": self.copies_wanted,
            "images_here": self.here,
            "images_after_report": exam.images_after_report,
            "unsolicited": exam.unsolicited,
            "unsolicited_reason": exam.unsolicited.map(maillage_consensus::exam::Unsolicited::as_str),
            "reconciled_into": exam.reconciled_into,
            "workitem": exam.workitem,
            "reports": exam.reports,
            "claim": exam.claim.as_ref().map(|claim| claim_json(claim, self.claim_site.as_ref())),
        })
    }
}

/// A claim as the API gives it.
pub(crate) fn claim_json(claim: &Claim, site_name: Option<&Name>) -> Value {
    json!({
        "user": claim.user,
        "site": claim.site,
        "site_name": site_name,
        "token": claim.token,
        "since": rfc3339(claim.since),
        "transaction_uid": claim.transaction_uid,
    })
}

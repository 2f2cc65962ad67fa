//! One exam as lists show it: the exam itself, and what of its images is where.

use std::collections::BTreeMap;

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Claim, Exam, Unsolicited};
use maillage_consensus::ids::{Name, SiteId};
use maillage_consensus::machine::ApplyError;
use schemars::JsonSchema;
use serde::Serialize;

use super::rfc3339::At;
use super::words::spelled;

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
    /// Whether the claim is shown with its proofs.
    pub(crate) proofs: bool,
}

/// Makes summaries from one view.
#[derive(Debug)]
pub(crate) struct Summaries<'a> {
    view: &'a View<'a>,
    site: SiteId,
    names: BTreeMap<SiteId, Name>,
    copies_wanted: u8,
    proofs: bool,
}

impl<'a> Summaries<'a> {
    /// Summaries of `view` as the node of `site` sees it.
    ///
    /// # Errors
    /// The state cannot be read, here and below.
    pub(crate) fn new(view: &'a View<'a>, site: SiteId) -> Result<Self, ApplyError> {
        let names = view.sites()?.into_iter().map(|site| (site.id, site.description.name)).collect();
        let copies_wanted = view.mesh()?.map_or(0, |mesh| mesh.copies);
        Ok(Self { view, site, names, copies_wanted, proofs: false })
    }

    /// With the proofs of claims, for who may have them all: on the unix socket, where whoever can open it
    /// can read the node's disk. Elsewhere a proof is shown to whom it was granted, in the answer that
    /// grants it, and to nobody else: it lets its holder end the claim.
    pub(crate) fn with_proofs(self, proofs: bool) -> Self {
        Self { proofs, ..self }
    }

    /// Whether the proofs of claims are shown.
    pub(crate) fn proofs(&self) -> bool {
        self.proofs
    }

    /// A claim.
    pub(crate) fn claim(&self, claim: &Claim) -> ClaimLine {
        ClaimLine::new(claim, Some(&self.name(claim.site)), self.proofs)
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
        let (copies_wanted, proofs) = (self.copies_wanted, self.proofs);
        Ok(ExamSummary { exam, copies, here, copies_wanted, claim_site, proofs })
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
    pub(crate) fn line(&self, now: UnixMillisField) -> ExamLine {
        let (exam, request, course) = (&self.exam, &self.exam.request, &self.exam.course);
        let patient = &request.patient;
        ExamLine {
            id: exam.id.0,
            state: exam.state.as_str(),
            priority: request.priority.as_str(),
            accession: request.accession.to_string(),
            patient: PatientLine {
                id: patient.id.to_string(),
                issuer: patient.issuer.to_string(),
                name: patient.name.to_string(),
                birth_date: patient.birth_date.to_string(),
                sex: patient.sex.to_string(),
            },
            modality: request.modality.to_string(),
            description: request.description.to_string(),
            hospital: request.hospital.to_string(),
            physician: request.physician.to_string(),
            awaits_images: request.awaits_images,
            added_at: At(exam.added_at),
            ready_at: exam.ready_at.map(At),
            due_at: exam.due_at.map(At),
            ended_at: exam.ended_at.map(At),
            overdue: self.overdue(now),
            studies: exam.studies.iter().map(ToString::to_string).collect(),
            copies: self.copies,
            copies_wanted: self.copies_wanted,
            images_here: self.here,
            images_after_report: exam.images_after_report,
            unsolicited: exam.unsolicited.as_ref().map(spelled),
            unsolicited_reason: exam.unsolicited.map(Unsolicited::as_str),
            reconciled_into: exam.reconciled_into.map(|id| id.0),
            workitem: exam.workitem,
            reports: exam.reports,
            claim: exam.claim.as_ref().map(|claim| ClaimLine::new(claim, self.claim_site.as_ref(), self.proofs)),
            break_glass: None,
            consent: spelled(&course.order.consent),
            specialty: spelled(&exam.specialty()),
            expertise: course.order.expertise.to_string(),
            question: course.order.question.to_string(),
            to_regulate: exam.awaits_regulation() && !exam.state.is_off() && exam.ready_at.is_none(),
            skipped: course.skipped.iter().map(spelled).collect(),
            opened_at: course.opened_at.map(At),
            standing_report: course.report,
            delivered_at: course.delivered_at.map(At),
            critical_open: course.critical_open,
            discrepancies_open: course.discrepancies_open,
            opinions_open: course.opinions_open,
            raised_by: course.raised_by.to_string(),
            read_twice: course.read_twice,
            picked: course.picked,
        }
    }
}

/// An exam as lists and grants give it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Exam")]
pub(crate) struct ExamLine {
    pub(crate) id: u64,
    #[schemars(schema_with = "super::words::state")]
    state: &'static str,
    #[schemars(schema_with = "super::words::priority")]
    priority: &'static str,
    accession: String,
    patient: PatientLine,
    modality: String,
    description: String,
    hospital: String,
    physician: String,
    awaits_images: bool,
    added_at: At,
    /// When its images were there.
    ready_at: Option<At>,
    /// When its report is due.
    due_at: Option<At>,
    /// When it was reported, cancelled or refused.
    ended_at: Option<At>,
    overdue: bool,
    /// Study Instance UIDs.
    studies: Vec<String>,
    /// The fewest that any of its images has; null without images.
    copies: Option<usize>,
    copies_wanted: u8,
    /// Whether this site holds all of its images.
    images_here: bool,
    images_after_report: bool,
    /// Why its images stand apart from any request, if they do.
    unsolicited: Option<String>,
    /// The same, for people.
    unsolicited_reason: Option<&'static str>,
    reconciled_into: Option<u64>,
    /// The number of its reading workitem.
    workitem: u32,
    /// Reports kept, drafts included.
    reports: u32,
    pub(crate) claim: Option<ClaimLine>,
    /// What was done to it here without a quorum, which the mesh may not know yet.
    pub(crate) break_glass: Option<serde_json::Value>,
    #[schemars(schema_with = "super::words::consent")]
    consent: String,
    /// Who reads it.
    #[schemars(schema_with = "super::words::specialty")]
    specialty: String,
    /// What its reader should be an expert of; empty for nothing.
    expertise: String,
    /// The clinical question.
    question: String,
    /// Whether it waits for a regulator.
    to_regulate: bool,
    /// Steps that an emergency left out.
    skipped: Vec<String>,
    /// When its present or last reader opened it.
    opened_at: Option<At>,
    /// The number of the report that stands.
    standing_report: Option<u32>,
    /// When that was delivered.
    delivered_at: Option<At>,
    /// Critical results of which nobody has been told.
    critical_open: u32,
    /// Discrepancies of which the physician has not been told.
    discrepancies_open: u32,
    /// Second opinions asked for and not given.
    opinions_open: u32,
    /// Who changed its urgency last: a user or an algorithm; empty for nobody.
    raised_by: String,
    read_twice: bool,
    /// Whether its reader picked it rather than being given it.
    picked: bool,
}

/// Who is examined.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Patient")]
struct PatientLine {
    id: String,
    issuer: String,
    name: String,
    birth_date: String,
    sex: String,
}

/// A claim as the API gives it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Claim")]
pub(crate) struct ClaimLine {
    user: String,
    site: u64,
    site_name: Option<String>,
    /// Its proof, needed to open, release or report. Only in the answer that grants it, and on the unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u64>,
    since: At,
    /// The same for UPS-RS, and shown to the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_uid: Option<String>,
}

impl ClaimLine {
    /// A claim at a site of this name, with its proofs or without.
    pub(crate) fn new(claim: &Claim, site_name: Option<&Name>, proofs: bool) -> Self {
        Self {
            user: claim.user.to_string(),
            site: claim.site.0,
            site_name: site_name.map(ToString::to_string),
            token: proofs.then_some(claim.token.0),
            since: At(claim.since),
            transaction_uid: proofs.then(|| claim.transaction_uid.to_string()),
        }
    }
}

//! A workitem as a Unified Procedure Step (PS3.3 section B.26): the data set made of its exam, of what
//! became of it, and of what its client said.
//!
//! Whatever the mesh decides it says itself: identity, state, urgency, readiness, the patient. What it
//! has no word for is the client's. The Transaction UID is in no data set: who knows it performs the step.

use std::collections::BTreeMap;

use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_consensus::exam::{Claim, Exam, ExamState, Priority, Workitem, WorkitemKind, WorkitemState};
use maillage_consensus::ids::SiteId;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::order::Specialty;

use super::dataset::{Code, Dataset};
use super::tags;
use super::uids::Uids;
use crate::node::Node;

/// UPS Push SOP Class: every step is created as an instance of it (PS3.4 section CC.3.1).
pub(crate) const UPS_PUSH: &str = "1.2.840.10008.5.1.4.34.6.1";
/// The coding scheme of codes that DICOM has none for. Private ones begin with 99 (PS3.3 section 8.2).
pub(crate) const OWN_SCHEME: &str = "99MAILLAGE";

/// What data sets are made with, besides exam and workitem.
#[derive(Debug)]
pub(crate) struct Scene {
    /// The mesh's UIDs.
    pub(crate) uids: Uids,
    /// The service's base URL, as this client reaches it.
    pub(crate) service: String,
    /// This node's AE title.
    pub(crate) ae_title: String,
    /// The sites' names.
    pub(crate) sites: BTreeMap<SiteId, String>,
}

impl Scene {
    /// Data sets of this node, for a client that reaches it at `service`.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn new(node: &Node, service: String) -> Result<Self, ApplyError> {
        Ok(Self {
            uids: Uids::new(&node.mesh_id()),
            service,
            ae_title: node.config().dicom.ae_title.as_str().to_owned(),
            sites: node.read(Self::sites_of)?,
        })
    }

    /// The sites as a view has them.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn sites_of(view: &View<'_>) -> Result<BTreeMap<SiteId, String>, ApplyError> {
        let sites = view.sites()?.into_iter();
        Ok(sites.map(|site| (site.id, site.description.name.to_string())).collect())
    }

    /// The data set of a workitem.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) fn describe(&self, view: &View<'_>, exam: &Exam, workitem: &Workitem) -> Result<Dataset, ApplyError> {
        let mut dataset = Dataset::default();
        for (tag, kept) in &workitem.step.attributes {
            dataset.put_kept(*tag, kept);
        }
        self.put_decided(&mut dataset, exam, workitem);
        put_progress(&mut dataset, workitem);
        if let Some(number) = workitem.step.replaces {
            let replaced = view.workitem(exam.id, number)?;
            let uid = replaced.map_or_else(|| self.uids.made(exam.id, number), |replaced| self.uids.of(&replaced));
            let mut item = Dataset::default();
            item.put(tags::REFERENCED_SOP_CLASS_UID, "UI", UPS_PUSH);
            item.put(tags::REFERENCED_SOP_INSTANCE_UID, "UI", &uid);
            dataset.put_items(tags::REPLACED_STEPS, vec![item]);
        }
        dataset.complete(self.defaults(exam, workitem));
        self.put_performed(&mut dataset, workitem);
        // Never, whatever a client stored.
        dataset.remove(tags::TRANSACTION_UID);
        Ok(dataset)
    }

    /// What the mesh decides, over whatever a client said.
    fn put_decided(&self, dataset: &mut Dataset, exam: &Exam, workitem: &Workitem) {
        let patient = &exam.request.patient;
        dataset.put(tags::SPECIFIC_CHARACTER_SET, "CS", "ISO_IR 192");
        dataset.put(tags::SOP_CLASS_UID, "UI", UPS_PUSH);
        dataset.put(tags::SOP_INSTANCE_UID, "UI", &self.uids.of(workitem));
        dataset.put(tags::PROCEDURE_STEP_STATE, "CS", state_name(workitem.state));
        dataset.put(tags::PRIORITY, "CS", priority_name(exam.request.priority));
        dataset.put(tags::INPUT_READINESS_STATE, "CS", readiness(exam, workitem.step.kind));
        dataset.put(tags::PATIENT_NAME, "PN", patient.name.as_str());
        dataset.put(tags::PATIENT_ID, "LO", patient.id.as_str());
        dataset.put(tags::ISSUER_OF_PATIENT_ID, "LO", patient.issuer.as_str());
        dataset.put(tags::PATIENT_BIRTH_DATE, "DA", patient.birth_date.as_str());
        dataset.put(tags::PATIENT_SEX, "CS", patient.sex.as_str());
    }

    /// What is said where the client said nothing.
    fn defaults(&self, exam: &Exam, workitem: &Workitem) -> Dataset {
        let step = &workitem.step;
        let mut dataset = Dataset::default();
        let scheduled = made_at(exam, workitem);
        dataset.put_time(tags::MODIFICATION_DATE_TIME, scheduled);
        let ready = if step.kind == WorkitemKind::Read { exam.ready_at } else { None };
        dataset.put_time(tags::START_DATE_TIME, ready.unwrap_or(scheduled).max(scheduled));
        if let (WorkitemKind::Read, Some(due_at)) = (step.kind, exam.due_at) {
            dataset.put_time(tags::EXPECTED_COMPLETION_DATE_TIME, due_at);
        }
        dataset.put(tags::PROCEDURE_STEP_LABEL, "LO", &label(exam, step.kind));
        dataset.put(tags::WORKLIST_LABEL, "LO", worklist_label(exam));
        dataset.put(tags::COMMENTS_ON_STEP, "LT", exam.course.order.question.as_str());
        dataset.put_code(tags::WORKITEM_CODES, &code_of(step.kind));
        for tag in [
            tags::PROCESSING_PARAMETERS,
            tags::STATION_NAME_CODES,
            tags::STATION_CLASS_CODES,
            tags::STATION_LOCATION_CODES,
            tags::OTHER_PATIENT_IDS,
            tags::ISSUER_OF_ADMISSION_ID,
            tags::ADMITTING_DIAGNOSES_CODES,
            tags::PROGRESS_INFORMATION,
        ] {
            dataset.put_items(tag, Vec::new());
        }
        dataset.put(tags::ADMISSION_ID, "LO", "");
        dataset.put(tags::ADMITTING_DIAGNOSES_DESCRIPTION, "LO", "");
        if let [study] = exam.studies.as_slice() {
            dataset.put(tags::STUDY_INSTANCE_UID, "UI", study.as_str());
        }
        if !step.asked.is_empty() {
            dataset.put_items(tags::SCHEDULED_HUMAN_PERFORMERS, vec![performer(step.asked.as_str(), "")]);
        }
        dataset.put_items(tags::INPUT_INFORMATION, self.input(exam, step.kind));
        dataset.put_items(tags::REFERENCED_REQUESTS, vec![requested(exam)]);
        dataset.put_items(tags::PERFORMED_PROCEDURE, Vec::new());
        dataset
    }

    /// The images, by study: a study's instances are its manifest's to list, not a worklist's.
    fn input(&self, exam: &Exam, kind: WorkitemKind) -> Vec<Dataset> {
        if matches!(kind, WorkitemKind::Regulate | WorkitemKind::Deliver) {
            return Vec::new();
        }
        let study = |uid: &str| {
            let mut retrieval = Dataset::default();
            retrieval.put(tags::RETRIEVE_AE_TITLE, "AE", &self.ae_title);
            let mut web = Dataset::default();
            web.put(tags::RETRIEVE_URL, "UR", &format!("{}/studies/{uid}", self.service));
            let mut item = Dataset::default();
            item.put(tags::TYPE_OF_INSTANCES, "CS", "DICOM");
            item.put(tags::STUDY_INSTANCE_UID, "UI", uid);
            item.put_items(tags::REFERENCED_SOPS, Vec::new());
            item.put_items(tags::DICOM_RETRIEVAL, vec![retrieval]);
            item.put_items(tags::WADO_RS_RETRIEVAL, vec![web]);
            item
        };
        exam.studies.iter().map(|uid| study(uid.as_str())).collect()
    }

    /// What the performer says of its work, with all that a final state needs (PS3.4 table CC.2.5-3): what it
    /// leaves out is the mesh's to say.
    fn put_performed(&self, dataset: &mut Dataset, workitem: &Workitem) {
        let Some(claim) = &workitem.performer else { return };
        let mut item = dataset.item(tags::PERFORMED_PROCEDURE);
        item.complete(self.performed(workitem, claim));
        dataset.put_items(tags::PERFORMED_PROCEDURE, vec![item]);
    }

    /// What was performed, by whom, where and when: what PS3.4 table CC.2.5-3 asks of a completed step.
    fn performed(&self, workitem: &Workitem, claim: &Claim) -> Dataset {
        let site = self.sites.get(&claim.site).map_or("", String::as_str);
        let mut item = Dataset::default();
        item.put_items(tags::ACTUAL_HUMAN_PERFORMERS, vec![performer(claim.user.as_str(), site)]);
        item.put_code(
            tags::PERFORMED_STATION_NAME_CODES,
            &Code { value: &format!("site-{}", claim.site), scheme: OWN_SCHEME, meaning: site },
        );
        item.put_code(tags::PERFORMED_WORKITEM_CODES, &code_of(workitem.step.kind));
        item.put_time(tags::PERFORMED_START_DATE_TIME, claim.since);
        if is_ended(workitem.state) {
            item.put_time(tags::PERFORMED_END_DATE_TIME, workitem.at);
        }
        item.put_items(tags::OUTPUT_INFORMATION, Vec::new());
        item
    }
}

fn made_at(exam: &Exam, workitem: &Workitem) -> UnixMillisField {
    // Format 1 did not keep it.
    if workitem.step.made_at.0 > 0 { workitem.step.made_at } else { exam.added_at }
}

/// Whether a step is in a final state (PS3.4 section CC.1.1).
pub(crate) fn is_ended(state: WorkitemState) -> bool {
    matches!(state, WorkitemState::Canceled | WorkitemState::Completed)
}

/// Why and when a step was canceled, in its progress information.
fn put_progress(dataset: &mut Dataset, workitem: &Workitem) {
    if workitem.state == WorkitemState::Canceled {
        let mut item = dataset.item(tags::PROGRESS_INFORMATION);
        item.put_time(tags::CANCELLATION_DATE_TIME, workitem.at);
        item.put(tags::REASON_FOR_CANCELLATION, "LT", workitem.reason.as_str());
        if !item.is_valued(tags::DISCONTINUATION_REASON_CODES) {
            // PS3.16 CID 9300; the reason itself is a text here.
            let code = Code { value: "110513", scheme: "DCM", meaning: "Discontinued for unspecified reason" };
            item.put_code(tags::DISCONTINUATION_REASON_CODES, &code);
        }
        dataset.put_items(tags::PROGRESS_INFORMATION, vec![item]);
    }
}

fn requested(exam: &Exam) -> Dataset {
    let request = &exam.request;
    let mut item = Dataset::default();
    if let [study] = exam.studies.as_slice() {
        item.put(tags::STUDY_INSTANCE_UID, "UI", study.as_str());
    }
    item.put(tags::ACCESSION_NUMBER, "SH", request.accession.as_str());
    item.put(tags::REQUESTING_PHYSICIAN, "PN", request.physician.as_str());
    item.put(tags::REQUESTING_SERVICE, "LO", request.hospital.as_str());
    item.put(tags::REQUESTED_PROCEDURE_DESCRIPTION, "LO", request.description.as_str());
    item.put_items(tags::REQUESTED_PROCEDURE_CODES, Vec::new());
    item.put(tags::REQUESTED_PROCEDURE_ID, "SH", &exam.id.to_string());
    item.put(tags::REASON_FOR_PROCEDURE, "LO", exam.course.order.question.as_str());
    item
}

/// A person, as an item of a sequence of human performers.
pub(crate) fn performer(user: &str, organization: &str) -> Dataset {
    let mut item = Dataset::default();
    item.put_code(tags::HUMAN_PERFORMER_CODES, &Code { value: user, scheme: OWN_SCHEME, meaning: user });
    item.put(tags::HUMAN_PERFORMER_NAME, "PN", user);
    item.put(tags::HUMAN_PERFORMER_ORGANIZATION, "LO", organization);
    item
}

/// A state as UPS writes it.
pub(crate) fn state_name(state: WorkitemState) -> &'static str {
    match state {
        WorkitemState::Scheduled => "SCHEDULED",
        WorkitemState::InProgress => "IN PROGRESS",
        WorkitemState::Canceled => "CANCELED",
        WorkitemState::Completed => "COMPLETED",
    }
}

/// UPS has three priorities for the queue's four.
pub(crate) fn priority_name(priority: Priority) -> &'static str {
    match priority {
        Priority::Vital | Priority::Urgent => "HIGH",
        Priority::SemiUrgent => "MEDIUM",
        Priority::Scheduled => "LOW",
    }
}

/// Whether what the step needs is there (PS3.3 section C.30.2).
pub(crate) fn readiness(exam: &Exam, kind: WorkitemKind) -> &'static str {
    match kind {
        // A regulator needs the request, a delivery the report: both are there once the step is.
        WorkitemKind::Regulate | WorkitemKind::Deliver => "READY",
        _ if exam.state == ExamState::Receiving => "INCOMPLETE",
        _ if exam.ready_at.is_some() || exam.course.images_at.is_some() => "READY",
        _ => "UNAVAILABLE",
    }
}

/// What is to be done: DICOM's code where there is one (PS3.16 CID 9231).
pub(crate) fn code_of(kind: WorkitemKind) -> Code<'static> {
    let dicom = |value, meaning| Code { value, scheme: "DCM", meaning };
    let own = |value, meaning| Code { value, scheme: OWN_SCHEME, meaning };
    match kind {
        WorkitemKind::Read => dicom("110005", "Interpretation"),
        WorkitemKind::Analyse => dicom("110004", "Computer Aided Detection"),
        WorkitemKind::Regulate => own("regulate", "Validation of the request"),
        WorkitemKind::SecondOpinion => own("second-opinion", "Second opinion"),
        WorkitemKind::Deliver => own("deliver", "Delivery of the report"),
    }
}

fn label(exam: &Exam, kind: WorkitemKind) -> String {
    /// VR LO.
    const CHARACTERS_MAX: usize = 64;
    let what = match kind {
        WorkitemKind::Read => "Read",
        WorkitemKind::Analyse => "Analyse",
        WorkitemKind::Regulate => "Validate",
        WorkitemKind::SecondOpinion => "Second opinion",
        WorkitemKind::Deliver => "Deliver the report of",
    };
    let words = [what, exam.request.modality.as_str(), exam.request.description.as_str()];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(CHARACTERS_MAX).collect()
}

fn worklist_label(exam: &Exam) -> &'static str {
    match exam.specialty() {
        Specialty::Radiology => "RADIOLOGY",
        Specialty::NuclearMedicine => "NUCLEAR MEDICINE",
    }
}

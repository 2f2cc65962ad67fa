//! Exams, their workitems, claims and reports.
//!
//! An exam is a requested procedure; reading it is a workitem in the sense of DICOM's Unified
//! Procedure Step (PS3.4 annex CC). UPS has no un-claim: a claim that ends without a report cancels
//! its workitem, with the reason, and a new one linked to it takes its place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::ids::{CommandId, ExamId, FencingToken, Line, Name, Prose, SiteId, UidText};
use crate::life::{self, Step};
use crate::order::{Consent, Order, Specialty};
use crate::record::{self, Record};

/// How urgent an exam is. The order is the queue's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// Life at stake: a report within 30 minutes.
    Vital,
    /// Within 1 hour.
    Urgent,
    /// Within 4 hours.
    SemiUrgent,
    /// Within 24 hours.
    Scheduled,
}

impl Priority {
    /// All, most urgent first.
    pub const ALL: [Self; 4] = [Self::Vital, Self::Urgent, Self::SemiUrgent, Self::Scheduled];

    /// Time from images received to report, in milliseconds.
    pub fn target_ms(self) -> u64 {
        const MINUTE: u64 = 60_000;
        match self {
            Self::Vital => 30 * MINUTE,
            Self::Urgent => 60 * MINUTE,
            Self::SemiUrgent => 4 * 60 * MINUTE,
            Self::Scheduled => 24 * 60 * MINUTE,
        }
    }

    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vital => "vital",
            Self::Urgent => "urgent",
            Self::SemiUrgent => "semi-urgent",
            Self::Scheduled => "scheduled",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Priority {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.as_str() == text)
            .ok_or_else(|| format!("{text:?} is none of vital, urgent, semi-urgent, scheduled"))
    }
}

/// Who is examined.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Patient {
    /// Patient ID (0010,0020).
    pub id: Line,
    /// Issuer of Patient ID (0010,0021); empty when unknown.
    pub issuer: Line,
    /// Patient's Name (0010,0010), as DICOM writes it.
    pub name: Line,
    /// Birth date, YYYYMMDD, or empty.
    pub birth_date: Text8,
    /// Sex: M, F, O or empty.
    pub sex: Text8,
}

/// A short code or date.
pub type Text8 = crate::ids::Text<16>;

impl Patient {
    /// Whether two identities name the same person: the same identifier, and no other trait that is
    /// known on both sides (issuer, birth date, sex) contradicts it. Identifiers without an issuer are
    /// a hospital's own, and two hospitals may give the same one.
    pub fn same_as(&self, other: &Self) -> bool {
        fn agree(a: &str, b: &str) -> bool {
            a.is_empty() || b.is_empty() || a == b
        }
        !self.id.is_empty()
            && self.id == other.id
            && agree(self.issuer.as_str(), other.issuer.as_str())
            && agree(self.birth_date.as_str(), other.birth_date.as_str())
            && agree(self.sex.as_str(), other.sex.as_str())
    }
}

/// What is known of an examination, from a request or from its images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Accession Number (0008,0050); empty when none.
    pub accession: Line,
    /// Who is examined.
    pub patient: Patient,
    /// Modality (0008,0060), such as CT or MR.
    pub modality: Text8,
    /// What is examined, for people.
    pub description: Line,
    /// The requesting hospital.
    pub hospital: Line,
    /// The requesting physician.
    pub physician: Line,
    /// How urgent.
    pub priority: Priority,
    /// Whether images are to arrive before it can be read. An exam whose images are elsewhere is
    /// ready at once.
    pub awaits_images: bool,
}

/// Where an exam stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExamState {
    /// Requested; its images have not arrived.
    Requested,
    /// In the waiting room.
    Waiting,
    /// Claimed by a reader.
    Claimed,
    /// The final report is signed.
    Reported,
    /// Not to be read.
    Cancelled,
    /// A regulator found it relevant; it has a protocol.
    Validated,
    /// The patient is being scanned.
    Acquiring,
    /// Its images are arriving, or are here while something else is waited for.
    Receiving,
    /// Its reader has opened it.
    Reading,
    /// The requesting physician has the report.
    Delivered,
    /// Its outcome was followed up.
    FollowedUp,
    /// Its images are gone, everywhere.
    Purged,
    /// Refused by a regulator, or the transfer by the patient.
    Refused,
}

impl ExamState {
    /// All, in an exam's order of life.
    pub const ALL: [Self; 13] = [
        Self::Requested,
        Self::Validated,
        Self::Acquiring,
        Self::Receiving,
        Self::Waiting,
        Self::Claimed,
        Self::Reading,
        Self::Reported,
        Self::Delivered,
        Self::FollowedUp,
        Self::Purged,
        Self::Refused,
        Self::Cancelled,
    ];

    /// Whether a final report was signed.
    pub fn is_reported(self) -> bool {
        matches!(self, Self::Reported | Self::Delivered | Self::FollowedUp | Self::Purged)
    }

    /// Whether somebody has it.
    pub fn is_held(self) -> bool {
        matches!(self, Self::Claimed | Self::Reading)
    }

    /// Whether it is over without a report.
    pub fn is_off(self) -> bool {
        matches!(self, Self::Cancelled | Self::Refused)
    }

    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Waiting => "waiting",
            Self::Claimed => "claimed",
            Self::Reported => "reported",
            Self::Cancelled => "cancelled",
            Self::Validated => "validated",
            Self::Acquiring => "acquiring",
            Self::Receiving => "receiving",
            Self::Reading => "reading",
            Self::Delivered => "delivered",
            Self::FollowedUp => "followed-up",
            Self::Purged => "purged",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for ExamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ExamState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is none of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// Why an exam's images stand apart from any request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unsolicited {
    /// No request has this accession number and patient.
    NoRequest,
    /// A request has this accession number, for **another patient**.
    OtherPatient,
    /// Several requests match.
    Ambiguous,
    /// The images carry no accession number or no patient id.
    NoIdentifiers,
}

impl Unsolicited {
    /// The reason, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRequest => "no request has this accession number and patient",
            Self::OtherPatient => "the request with this accession number names another patient",
            Self::Ambiguous => "several requests match",
            Self::NoIdentifiers => "the images carry no accession number or no patient id",
        }
    }
}

/// An exam.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exam {
    /// Its number.
    pub id: ExamId,
    /// What is known of it.
    pub request: Request,
    /// Where it stands.
    pub state: ExamState,
    /// When it was added.
    pub added_at: UnixMillisField,
    /// When it became ready to read: its images arrived.
    pub ready_at: Option<UnixMillisField>,
    /// When its report is due.
    pub due_at: Option<UnixMillisField>,
    /// When it was reported or cancelled.
    pub ended_at: Option<UnixMillisField>,
    /// Set while it stands apart from any request, to be reconciled.
    pub unsolicited: Option<Unsolicited>,
    /// Where its images went, when it was reconciled into another exam.
    pub reconciled_into: Option<ExamId>,
    /// Its studies, by UID.
    pub studies: Vec<UidText>,
    /// The number of its current reading workitem, from 1.
    pub workitem: u32,
    /// Who reads it now.
    pub claim: Option<Claim>,
    /// Reports kept, those under a stale token included.
    pub reports: u32,
    /// Whether images came after the report.
    pub images_after_report: bool,
    /// What format 2 knows of it.
    pub course: Course,
}

/// What became of an exam: everything that the first format did not know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Course {
    /// What its request says beyond the exam's own.
    pub order: Order,
    /// What the regulator decided.
    pub regulation: Option<Regulation>,
    /// What an emergency left out, in the order in which it was noticed.
    pub skipped: Vec<Skipped>,
    /// Workitems made so far; 0 while the reading ones are the only ones.
    pub workitems: u32,
    /// When its images were complete, though something else was still waited for.
    pub images_at: Option<UnixMillisField>,
    /// When its current reader opened it.
    pub opened_at: Option<UnixMillisField>,
    /// The number of the report that stands: the last preliminary or final one.
    pub report: Option<u32>,
    /// When the standing report was delivered.
    pub delivered_at: Option<UnixMillisField>,
    /// Remarks kept: second opinions, findings, critical results, discrepancies, notes.
    pub remarks: u32,
    /// Critical results that nobody has acknowledged.
    pub critical_open: u32,
    /// Discrepancies of which the physician has not been told.
    pub discrepancies_open: u32,
    /// Second opinions asked for and not given.
    pub opinions_open: u32,
    /// Who raised its priority, if it is not its request's: an algorithm or a user.
    pub raised_by: Name,
    /// Whether it was read more than once.
    pub read_twice: bool,
    /// Whether its reader picked it rather than being given it.
    pub picked: bool,
    /// Why its images must not be purged, while they must not.
    pub legal_hold: Option<LegalHold>,
    /// When its images were purged, and why.
    pub purged: Option<Purged>,
}

/// An order that an exam's images stay, whatever their age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegalHold {
    /// Why.
    pub reason: Line,
    /// By whom.
    pub user: Name,
    /// Since when.
    pub at: UnixMillisField,
}

/// The end of an exam's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Since when no site may show or copy them.
    pub at: UnixMillisField,
    /// Why; empty when their time was over.
    pub reason: Line,
    /// By whom; empty for the mesh itself.
    pub user: Name,
}

/// What a regulator decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regulation {
    /// By whom.
    pub user: Name,
    /// Where.
    pub site: SiteId,
    /// When.
    pub at: UnixMillisField,
    /// The protocol by which it is to be acquired, or why it is refused.
    pub verdict: Verdict,
}

/// Relevant or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Relevant: the protocol to acquire it by.
    Validated {
        /// For the technologist.
        protocol: Line,
    },
    /// Not to be done.
    Refused {
        /// Why.
        reason: Line,
    },
}

/// A step that an emergency left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skipped {
    /// The images came before the request.
    RequestBeforeImages,
    /// It was read without a regulator's word.
    Regulation,
    /// Nobody declared the patient's consent.
    Consent,
    /// It was scanned though a regulator's word was still to come.
    RegulationBeforeAcquisition,
}

impl Record for Exam {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "exam";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&Course::default()))
    }
}

impl Exam {
    /// Who reads it.
    pub fn specialty(&self) -> Specialty {
        self.course.order.specialty.unwrap_or_else(|| Specialty::of_modality(self.request.modality.as_str()))
    }

    /// Whether an emergency may skip what it must: a life at stake, or a requester who says so.
    pub fn is_emergency(&self) -> bool {
        self.request.priority == Priority::Vital || self.course.order.consent == Consent::Emergency
    }

    /// Whether its images must not leave the site that received them.
    pub fn is_confined(&self) -> bool {
        self.course.order.consent == Consent::Refused
    }

    /// The exam with the number of its standing report, also when format 1, which did not count them, signed
    /// it: its first final report under a claim that held. `report` reads one of its reports.
    pub(crate) fn with_standing_report<E>(
        mut self,
        mut report: impl FnMut(u32) -> Result<Option<Report>, E>,
    ) -> Result<Self, E> {
        if self.course.report.is_none() && self.state.is_reported() {
            for number in 1..=self.reports {
                let stands = |kept: Report| !kept.stale && kept.signed.kind == ReportKind::Final;
                if report(number)?.is_some_and(stands) {
                    self.course.report = Some(number);
                    break;
                }
            }
        }
        Ok(self)
    }

    /// Whether it is still to be read: in the room, or with a reader.
    pub fn is_open(&self) -> bool {
        self.state == ExamState::Waiting || self.state.is_held()
    }

    /// Whether it still waits for a regulator.
    pub fn awaits_regulation(&self) -> bool {
        self.course.order.regulate && self.course.regulation.is_none()
    }

    /// The state after a step, or why there is none.
    ///
    /// # Errors
    /// The state that does not allow it.
    pub fn after(&self, step: Step) -> Result<ExamState, ExamState> {
        life::after(self.state, step).ok_or(self.state)
    }
}

/// The right to read an exam, held by one user at one site while that site's session lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its proof, required to release or complete.
    pub token: FencingToken,
    /// Where.
    pub site: SiteId,
    /// The site's session, whose end ends the claim.
    pub session: u64,
    /// By whom.
    pub user: Name,
    /// Since when.
    pub since: UnixMillisField,
    /// The UPS Transaction UID that carries the token outward (PS3.4 section CC.1.1).
    pub transaction_uid: UidText,
}

/// A reading workitem's state, in UPS's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WorkitemState {
    /// Nobody has it.
    Scheduled,
    /// One performer has it.
    InProgress,
    /// Ended without a report.
    Canceled,
    /// Ended with one.
    Completed,
}

/// One attempt at reading an exam.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workitem {
    /// The exam.
    pub exam: ExamId,
    /// Its number within the exam, from 1; a replacement has the next.
    pub number: u32,
    /// Its state.
    pub state: WorkitemState,
    /// Who had or has it.
    pub performer: Option<Claim>,
    /// Why it was canceled.
    pub reason: Line,
    /// When it got into this state.
    pub at: UnixMillisField,
    /// What format 2 knows of it.
    pub step: Procedure,
}

/// What a workitem is for, as a Unified Procedure Step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Procedure {
    /// What is to be done.
    pub kind: WorkitemKind,
    /// Its SOP Instance UID when a client chose it; empty: derived from the mesh, the exam and its number.
    pub uid: UidText,
    /// Who is asked for; empty for anybody.
    pub asked: Name,
    /// The workitem that this one replaces.
    pub replaces: Option<u32>,
    /// A client's attributes: a tag, and its value in the DICOM JSON model (PS3.18 annex F).
    pub attributes: std::collections::BTreeMap<u32, serde_bytes::ByteBuf>,
    /// Who asked its performer to stop, and why.
    pub cancel_asked: Option<CancelAsked>,
    /// When it was made.
    pub made_at: UnixMillisField,
}

/// A request to stop (PS3.4 section CC.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAsked {
    /// By whom.
    pub by: Name,
    /// Why.
    pub reason: Line,
    /// When.
    pub at: UnixMillisField,
}

/// What a workitem asks its performer to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkitemKind {
    /// To read the exam and report it.
    #[default]
    Read,
    /// To validate the request.
    Regulate,
    /// To look too.
    SecondOpinion,
    /// To analyse the images: an algorithm.
    Analyse,
    /// To bring the report to the requesting physician.
    Deliver,
}

impl WorkitemKind {
    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Regulate => "regulate",
            Self::SecondOpinion => "second-opinion",
            Self::Analyse => "analyse",
            Self::Deliver => "deliver",
        }
    }
}

impl Record for Workitem {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "workitem";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&Procedure::default()))
    }
}

/// A report, never replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The exam.
    pub exam: ExamId,
    /// Its number within the exam, from 1.
    pub number: u32,
    /// The text.
    pub text: Prose,
    /// By whom.
    pub user: Name,
    /// Where.
    pub site: SiteId,
    /// When.
    pub at: UnixMillisField,
    /// The token it was signed under.
    pub token: FencingToken,
    /// Whether that token no longer held: the text is kept as a draft and is not *the* report.
    pub stale: bool,
    /// What kind it is, and its signature.
    pub signed: Signed,
}

/// A report's kind, and who vouches for its text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Signed {
    /// What kind of report.
    pub kind: ReportKind,
    /// The site's ed25519 signature over what [`crate::command::signed_bytes`] gives; empty for none.
    pub signature: serde_bytes::ByteBuf,
    /// The command that brought it: a repeat that comes after that command's outcome is forgotten is known
    /// by it. All zeros in a mesh of format 1.
    pub command: CommandId,
}

/// What a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportKind {
    /// The reader's last word.
    #[default]
    Final,
    /// A first word, to be followed by a final one.
    Preliminary,
    /// A word added to a final one.
    Addendum,
    /// Written apart from the queue, by break glass, when somebody else read the exam too.
    SecondRead,
}

impl ReportKind {
    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Final => "final",
            Self::Preliminary => "preliminary",
            Self::Addendum => "addendum",
            Self::SecondRead => "second-read",
        }
    }
}

impl Record for Report {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "report";

    fn added() -> Option<Vec<u8>> {
        Some(record::fields(&Signed::default()))
    }
}

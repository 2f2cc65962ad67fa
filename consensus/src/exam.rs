//! Exams, their workitems, claims and reports.
//!
//! An exam is a requested procedure; reading it is a workitem in the sense of DICOM's Unified
//! Procedure Step (PS3.4 annex CC). UPS has no un-claim: a claim that ends without a report cancels
//! its workitem, with the reason, and a new one linked to it takes its place.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::ids::{ExamId, FencingToken, Line, Name, Prose, SiteId, UidText};
use crate::record::Record;

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
    /// Reported.
    Reported,
    /// Not to be read.
    Cancelled,
}

impl ExamState {
    /// All, in an exam's order of life.
    pub const ALL: [Self; 5] = [Self::Requested, Self::Waiting, Self::Claimed, Self::Reported, Self::Cancelled];

    /// The name used on every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Waiting => "waiting",
            Self::Claimed => "claimed",
            Self::Reported => "reported",
            Self::Cancelled => "cancelled",
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
        known.ok_or_else(|| format!("{text:?} is none of requested, waiting, claimed, reported, cancelled"))
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
}

impl Record for Exam {
    const VERSION: u8 = 1;
    const WHAT: &'static str = "exam";
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
}

impl Record for Workitem {
    const VERSION: u8 = 1;
    const WHAT: &'static str = "workitem";
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
}

impl Record for Report {
    const VERSION: u8 = 1;
    const WHAT: &'static str = "report";
}

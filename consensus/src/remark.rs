//! What people and algorithms say of an exam besides its report: second opinions, findings, critical
//! results, discrepancies, notes. Each is kept for good, with who, where and when.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::exam::{Priority, Text8};
use crate::ids::{CommandId, ExamId, Line, Name, Paragraph, SiteId};
use crate::record::Record;

/// Something said of an exam.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// The exam.
    pub exam: ExamId,
    /// Its number within the exam, from 1.
    pub number: u32,
    /// By whom.
    pub user: Name,
    /// Where.
    pub site: SiteId,
    /// When.
    pub at: UnixMillisField,
    /// What.
    pub what: What,
    /// The command that it was said by: a repeat that comes after that command's outcome is forgotten is
    /// known by it.
    pub command: CommandId,
}

impl Record for Remark {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "remark";
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// From centre to centre.
    Note(Paragraph),
    /// A colleague is asked to look too; with the answer once it is given.
    Opinion(Opinion),
    /// An algorithm's result.
    Finding(Finding),
    /// A result of which somebody must be told at once.
    Critical(Critical),
    /// Two readings differ.
    Discrepancy(Discrepancy),
    /// What became of the patient.
    FollowUp(Paragraph),
}

/// A second opinion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    /// Whom it is asked of: a person, or a specialty; empty for anybody in any centre.
    pub of: Name,
    /// The question.
    pub question: Paragraph,
    /// Its workitem.
    pub workitem: u32,
    /// The answer.
    pub answer: Option<Answer>,
}

/// A second opinion given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// By whom.
    pub user: Name,
    /// Where.
    pub site: SiteId,
    /// When.
    pub at: UnixMillisField,
    /// The opinion.
    pub text: Paragraph,
    /// Whether it agrees with the first reader.
    pub concordance: Concordance,
}

/// How far two opinions agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Concordance {
    /// They agree.
    Agrees,
    /// They differ, without consequence for the patient.
    DiffersMinor,
    /// They differ, with consequence for the patient.
    DiffersMajor,
}

/// What an algorithm found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its name.
    pub algorithm: Name,
    /// Its version.
    pub version: Text8,
    /// What it found, such as `intracranial haemorrhage`; empty for nothing.
    pub finding: Line,
    /// How sure it is, in thousandths.
    pub score: u16,
    /// Where: a SOP Instance UID and frame, or words.
    pub location: Line,
    /// The urgency that it asks for. It raises the exam's, never lowers it.
    pub priority: Option<Priority>,
}

/// A result of which the physician must be told at once, by telephone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Critical {
    /// What.
    pub text: Paragraph,
    /// When nobody has acknowledged it by then, it escalates.
    pub due_at: UnixMillisField,
    /// How often it has escalated.
    pub escalated: u32,
    /// Who was told.
    pub told: Option<Told>,
}

/// Who was told of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Who was told: a name and function.
    pub whom: Line,
    /// By whom.
    pub user: Name,
    /// When.
    pub at: UnixMillisField,
    /// Whether they read it back.
    pub read_back: bool,
}

/// A difference between readings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discrepancy {
    /// How grave: 1 none, 2 minor, 3 major, 4 vital (as the RADPEER score counts).
    pub grade: u8,
    /// What differs.
    pub text: Paragraph,
    /// When the physician was told.
    pub told: Option<Told>,
}

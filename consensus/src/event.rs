//! What happened, in the order in which the mesh decided it: the one stream that every interface's events
//! come from.
//!
//! An event's cursor is the log index of its command and its place among that command's events, so that a
//! client that was away, or goes to another node, asks for what comes after the last it saw.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::exam::{ExamState, Priority, WorkitemKind, WorkitemState};
use crate::ids::{ExamId, Line, Name, SiteId, UidText};
use crate::record::Record;

/// Events are kept for a week; a client that was away for longer reads the worklist anew.
pub const EVENTS_KEPT_MS: u64 = 7 * 24 * 3_600_000;

/// A place in the stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cursor {
    /// The log index of the command.
    pub index: u64,
    /// The event's place among the command's, from 0.
    pub place: u16,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.place)
    }
}

impl FromStr for Cursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (index, place) = text.split_once('.').unwrap_or((text, "65535"));
        Ok(Self { index: index.parse()?, place: place.parse()? })
    }
}

/// Something that happened to an exam.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in the state's time.
    pub at: UnixMillisField,
    /// By whom; empty for a node itself.
    pub user: Name,
    /// Through which site.
    pub site: SiteId,
    /// The exam.
    pub exam: ExamId,
    /// What.
    pub what: Happened,
}

impl Record for Event {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "event";
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    /// The exam's state changed.
    Exam {
        /// From; none for a new exam.
        from: Option<ExamState>,
        /// To.
        to: ExamState,
    },
    /// A workitem's state changed (a *UPS State Report*, PS3.4 table CC.2.4-1).
    Workitem {
        /// Its number within the exam.
        number: u32,
        /// What it is for.
        kind: WorkitemKind,
        /// Its UID, when a client chose it.
        uid: UidText,
        /// Its state now.
        state: WorkitemState,
        /// Why, when it was canceled.
        reason: Line,
    },
    /// Somebody asked for a workitem to be canceled (*UPS Cancel Requested*).
    CancelAsked {
        /// Its number.
        number: u32,
        /// Why.
        reason: Line,
    },
    /// A workitem's attributes changed (*UPS Progress Report*, when they are of its progress).
    WorkitemUpdated {
        /// Its number.
        number: u32,
    },
    /// A workitem was given to a performer (*UPS Assigned*).
    Assigned {
        /// Its number.
        number: u32,
        /// To whom.
        to: Name,
    },
    /// A claim ended without its reader: their site went away, or somebody took over.
    ClaimLost {
        /// Who had it.
        user: Name,
        /// Where.
        site: SiteId,
        /// Why.
        reason: Line,
    },
    /// Images came.
    Images {
        /// The study.
        study: UidText,
        /// Instances of the part that came.
        instances: u32,
    },
    /// The urgency changed.
    Priority {
        /// To.
        to: Priority,
        /// By whom: a user or an algorithm.
        by: Name,
    },
    /// A report, draft or addendum was kept.
    Report {
        /// Its number.
        number: u32,
    },
    /// Something was said of it, or answered.
    Remark {
        /// Its number.
        number: u32,
    },
    /// A critical result was not acknowledged in time.
    Escalated {
        /// The remark's number.
        number: u32,
    },
    /// Images of an unasked exam were attached to a requested one.
    Reconciled {
        /// Which.
        into: ExamId,
    },
}

//! What clients asked and what they were told: the only thing, beside the end's state, that is judged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

/// What was asked of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Act {
    /// A request for an examination.
    Add { accession: String, awaits_images: bool },
    /// A claim of this exam, or of whichever is next.
    Claim { exam: Option<u64> },
    /// The end of a claim without a report.
    Release { exam: u64, token: u64 },
    /// The end of a claim with a report.
    Report { exam: u64, token: u64, text: String },
    /// A fresh read of an exam.
    Read { exam: u64 },
}

impl Act {
    /// Its name in the summary.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Claim { exam: None } => "claim next",
            Self::Claim { .. } => "claim",
            Self::Release { .. } => "release",
            Self::Report { .. } => "report",
            Self::Read { .. } => "read",
        }
    }
}

/// What the client was told in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Told {
    /// The request has this number.
    Added { exam: u64 },
    /// The exam is this user's.
    Granted { exam: u64, token: u64 },
    /// Nothing waits.
    Nothing,
    /// Somebody has it.
    Held { user: String },
    /// It is in this state, in which that cannot be.
    WrongState { state: String },
    /// The claim no longer holds; the text is kept as this draft.
    Stale { kept_as: Option<u64> },
    /// Done.
    Done,
    /// What an exam is like.
    Shown { state: String, holder: Option<(String, u64)> },
    /// Anything else that is certain.
    Refused { status: u16, code: String },
}

/// One operation of one client. Times are nanoseconds since the start.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Op {
    /// Who asked; unique for each life of a reader.
    pub(crate) user: String,
    /// The command's id, empty for a read.
    pub(crate) command: String,
    pub(crate) act: Act,
    pub(crate) call: u64,
    /// `None`: no certain answer came.
    pub(crate) answer: Option<u64>,
    pub(crate) told: Option<Told>,
    /// What a repeat of the same command after its answer was told.
    pub(crate) again: Option<Told>,
    /// Requests that it took.
    pub(crate) attempts: u32,
    /// Where it was asked first.
    pub(crate) site: String,
}

impl Op {
    /// The exam that it is about, as far as it is known.
    pub(crate) fn exam(&self) -> Option<u64> {
        match (&self.act, &self.told) {
            (Act::Claim { exam: None } | Act::Add { .. }, told) => match told {
                Some(Told::Granted { exam, .. } | Told::Added { exam }) => Some(*exam),
                _ => None,
            },
            (Act::Claim { exam }, _) => *exam,
            (Act::Release { exam, .. } | Act::Report { exam, .. } | Act::Read { exam }, _) => Some(*exam),
        }
    }
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The check that found it.
    pub(crate) check: &'static str,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, what: what.into() }
    }
}

/// Everything that happened, in memory and as JSON lines.
#[derive(Debug)]
pub(crate) struct History {
    start: Instant,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    ops: Vec<Op>,
    violations: Vec<Violation>,
    counts: BTreeMap<String, u64>,
    file: File,
}

impl History {
    /// A history that begins now and is written to `file`.
    pub(crate) fn new(file: &Path) -> anyhow::Result<Self> {
        let file = File::create(file).with_context(|| format!("create {}", file.display()))?;
        let record = Record { ops: Vec::new(), violations: Vec::new(), counts: BTreeMap::new(), file };
        Ok(Self { start: Instant::now(), record: Mutex::new(record) })
    }

    /// Now, in nanoseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, record: &mut Record, kind: &str, what: &Value) {
        let at_ms = self.start.elapsed().as_millis();
        // A history that cannot be written is found by whoever wants to read it; the run goes on.
        let _ = writeln!(record.file, "{}", json!({ "at_ms": at_ms, kind: what }));
    }

    /// An operation that is over, or given up.
    pub(crate) fn add(&self, op: Op) {
        let mut record = self.record();
        let what = serde_json::to_value(&op).unwrap_or_default();
        self.line(&mut record, "op", &what);
        let certain = if op.told.is_some() { "" } else { ", never answered" };
        *record.counts.entry(format!("{}{certain}", op.act.name())).or_default() += 1;
        record.ops.push(op);
    }

    /// One request and its answer: the raw material of an operation.
    pub(crate) fn attempt(&self, command: &str, site: &str, what: &str, answer: &str) {
        let mut record = self.record();
        let what = json!({ "command": command, "site": site, "what": what, "answer": answer });
        self.line(&mut record, "attempt", &what);
    }

    /// Something that is counted, and told with its details.
    pub(crate) fn event(&self, kind: &str, what: &Value) {
        let mut record = self.record();
        *record.counts.entry(kind.to_owned()).or_default() += 1;
        self.line(&mut record, kind, what);
    }

    /// A violation that was seen at once.
    pub(crate) fn violation(&self, violation: Violation) {
        eprintln!("VIOLATION {}: {}", violation.check, violation.what);
        let mut record = self.record();
        let what = json!({ "check": violation.check, "what": violation.what });
        self.line(&mut record, "violation", &what);
        record.violations.push(violation);
    }

    /// All operations so far.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.record().ops.clone()
    }

    /// All violations so far.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.record().violations.clone()
    }

    /// How often each thing happened.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.record().counts.clone()
    }
}

//! What the outbox holds, as its journal tells it: pure state, the same after a crash as before.

use std::collections::BTreeMap;

use maillage_consensus::command::{Command, Envelope, UnixMillisField};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Prose};

use super::record::{End, GlassToken, Record};

/// How long what the mesh decided stays to be seen: as long as the mesh itself knows a command's outcome.
pub(crate) const KEPT_MS: u64 = maillage_consensus::OUTCOME_KEPT_MS;

/// A record that makes no sense after those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its records contradict each other")]
pub(crate) struct Contradiction;

/// All entries, by the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

/// An exam taken by break glass, or a command that waits for a quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name. A command's is its command id.
    pub(crate) id: CommandId,
    /// The exam that it is about.
    pub(crate) exam: ExamId,
    /// Whose it is.
    pub(crate) user: Name,
    /// When it was made, by this site's clock.
    pub(crate) at: UnixMillisField,
    /// What it is.
    pub(crate) what: What,
    /// What the mesh decided, and when.
    pub(crate) end: Option<(End, UnixMillisField)>,
    /// Rises with each of its records.
    pub(crate) revision: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// An exam taken by break glass.
    Glass(Glass),
    /// A command.
    Command(Box<Envelope>),
}

/// An exam taken by break glass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glass {
    /// Why.
    pub(crate) reason: Line,
    /// Whether the mesh may have made an ordinary claim of it.
    pub(crate) tried: bool,
    /// Its report, once written.
    pub(crate) report: Option<GlassReport>,
    /// Why and when it was given back, once it was.
    pub(crate) given_back: Option<(Line, UnixMillisField)>,
}

/// A report written under a break-glass claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GlassReport {
    /// The client's name for it.
    pub(crate) key: CommandId,
    /// The text.
    pub(crate) text: Prose,
    /// The site's signature, or empty.
    pub(crate) signature: Vec<u8>,
    /// When it was written.
    pub(crate) at: UnixMillisField,
}

/// How many entries are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// To be sent.
    pub(crate) waiting: usize,
    /// Of those, exams that are being read by break glass.
    pub(crate) held: usize,
    /// Ended in a way that a person must take note of.
    pub(crate) unacknowledged: usize,
    /// Decided, and still shown.
    pub(crate) settled: usize,
}

impl Counts {
    /// Entries by state, as metrics call them.
    pub(crate) fn by_state(&self) -> [(&'static str, usize); 3] {
        [("waiting", self.waiting), ("unacknowledged", self.unacknowledged), ("settled", self.settled)]
    }
}

impl Book {
    /// The book that these records make.
    ///
    /// # Errors
    /// [`Contradiction`].
    pub(crate) fn of(records: Vec<Record>) -> Result<Self, Contradiction> {
        let mut book = Self::default();
        for record in records {
            book.apply(record)?;
        }
        Ok(book)
    }

    /// Adds what a record says.
    ///
    /// # Errors
    /// [`Contradiction`]: the record is of no entry that it could be of. Nothing is changed.
    pub(crate) fn apply(&mut self, record: Record) -> Result<(), Contradiction> {
        match record {
            Record::Taken { id, exam, user, reason, at } => {
                let glass = Glass { reason, tried: false, report: None, given_back: None };
                self.add(Entry { id, exam, user, at, what: What::Glass(glass), end: None, revision: 0 })
            }
            Record::Queued { envelope, at } => {
                let envelope = Envelope::decode(&envelope).map_err(|_| Contradiction)?;
                let exam = envelope.command.exam().ok_or(Contradiction)?;
                let (id, user) = (envelope.id, envelope.user.clone());
                self.add(Entry { id, exam, user, at, what: What::Command(Box::new(envelope)), end: None, revision: 0 })
            }
            Record::Tried { id } => self.glass(id, |glass, _| glass.tried = true),
            Record::Reported { id, key, text, signature, at } => self.glass(id, |glass, end| {
                glass.report = Some(GlassReport { key, text, signature, at });
                *end = None;
            }),
            Record::GivenBack { id, reason, at } => self.glass(id, |glass, end| {
                glass.given_back = Some((reason, at));
                *end = None;
            }),
            Record::Settled { id, end, at } => self.change(id, |entry| entry.end = Some((end, at))),
            Record::Dropped { id } => {
                let number = self.number(id).ok_or(Contradiction)?;
                self.entries.remove(&number);
                Ok(())
            }
        }
    }

    fn add(&mut self, entry: Entry) -> Result<(), Contradiction> {
        if self.get(entry.id).is_some() {
            return Err(Contradiction);
        }
        self.entries.insert(self.next, entry);
        self.next += 1;
        Ok(())
    }

    fn number(&self, id: CommandId) -> Option<u64> {
        self.entries.iter().find(|(_, entry)| entry.id == id).map(|(number, _)| *number)
    }

    fn change(&mut self, id: CommandId, change: impl FnOnce(&mut Entry)) -> Result<(), Contradiction> {
        let entry = self.entries.values_mut().find(|entry| entry.id == id).ok_or(Contradiction)?;
        change(entry);
        entry.revision += 1;
        Ok(())
    }

    fn glass(
        &mut self,
        id: CommandId,
        change: impl FnOnce(&mut Glass, &mut Option<(End, UnixMillisField)>),
    ) -> Result<(), Contradiction> {
        let is_glass = self.get(id).is_some_and(|entry| entry.glass().is_some());
        if !is_glass {
            return Err(Contradiction);
        }
        self.change(id, |entry| {
            if let What::Glass(glass) = &mut entry.what {
                change(glass, &mut entry.end);
            }
        })
    }

    /// The entry of this name.
    pub(crate) fn get(&self, id: CommandId) -> Option<&Entry> {
        self.entries.values().find(|entry| entry.id == id)
    }

    /// All entries, the oldest first.
    pub(crate) fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.values()
    }

    /// What of an exam's break glass there is to show: what is under way, else the last that ended.
    pub(crate) fn glass_of(&self, exam: ExamId) -> Option<(&Entry, &Glass)> {
        let of_exam = || self.entries().filter(|entry| entry.exam == exam).filter_map(|e| Some((e, e.glass()?)));
        of_exam().find(|(entry, _)| entry.end.is_none()).or_else(|| of_exam().next_back())
    }

    /// How many entries are in which state.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.entries() {
            match &entry.end {
                None => {
                    counts.waiting += 1;
                    counts.held += usize::from(entry.is_held());
                }
                Some((end, _)) if end.needs_a_person() => counts.unacknowledged += 1,
                Some(_) => counts.settled += 1,
            }
        }
        counts
    }

    /// Whether anything is to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        self.entries().any(|entry| entry.end.is_none())
    }

    /// Entries that need not be shown any more at `now`.
    pub(crate) fn forgettable(&self, now: UnixMillisField) -> Vec<CommandId> {
        let old = |entry: &&Entry| {
            let ended = entry.end.as_ref().filter(|(end, _)| !end.needs_a_person());
            ended.is_some_and(|(_, at)| now.0.saturating_sub(at.0) > KEPT_MS)
        };
        self.entries().filter(old).map(|entry| entry.id).collect()
    }

    /// The records that make this book, without those that a later one made idle.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.entries().flat_map(Entry::records).collect()
    }
}

impl Entry {
    /// Its break glass, if it is one.
    pub(crate) fn glass(&self) -> Option<&Glass> {
        match &self.what {
            What::Glass(glass) => Some(glass),
            What::Command(_) => None,
        }
    }

    /// Whether its exam is being read by break glass now.
    pub(crate) fn is_held(&self) -> bool {
        self.end.is_none() && self.glass().is_some_and(|glass| glass.report.is_none() && glass.given_back.is_none())
    }

    /// The proof of its break-glass claim.
    pub(crate) fn token(&self) -> Option<GlassToken> {
        self.glass().map(|_| GlassToken(self.id))
    }

    /// The kind's name on every interface.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.what {
            What::Glass(_) => "break-glass",
            What::Command(envelope) => match &envelope.command {
                Command::Addend { .. } => "addendum",
                Command::Note { .. } => "note",
                _ => "report",
            },
        }
    }

    /// The state's name on every interface.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.end, &self.what) {
            (Some((end, _)), _) => end.as_str(),
            (None, What::Glass(glass)) if glass.report.is_none() && glass.given_back.is_none() => "held",
            (None, _) => "queued",
        }
    }

    /// What was written: a report or a remark.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.what {
            What::Glass(glass) => glass.report.as_ref().map(|report| report.text.as_str()),
            What::Command(envelope) => text_of(&envelope.command),
        }
    }

    fn records(&self) -> Vec<Record> {
        let (id, mut records) = (self.id, Vec::new());
        match &self.what {
            What::Command(envelope) => records.push(Record::Queued { envelope: envelope.encode(), at: self.at }),
            What::Glass(glass) => {
                let (user, reason) = (self.user.clone(), glass.reason.clone());
                records.push(Record::Taken { id, exam: self.exam, user, reason, at: self.at });
                if glass.tried {
                    records.push(Record::Tried { id });
                }
                if let Some(GlassReport { key, text, signature, at }) = glass.report.clone() {
                    records.push(Record::Reported { id, key, text, signature, at });
                }
                if let Some((reason, at)) = glass.given_back.clone() {
                    records.push(Record::GivenBack { id, reason, at });
                }
            }
        }
        if let Some((end, at)) = self.end.clone() {
            records.push(Record::Settled { id, end, at });
        }
        records
    }
}

/// The text that a command carries, if it is one of those that may wait for a quorum: they say something
/// of an exam, and decide nothing that somebody else could be waiting for.
pub(crate) fn text_of(command: &Command) -> Option<&str> {
    match command {
        Command::Complete { report, .. } => Some(report.as_str()),
        Command::Report { text, .. } | Command::Addend { text, .. } => Some(text.as_str()),
        Command::Note { text, .. } => Some(text.as_str()),
        _ => None,
    }
}

//! What may be written into the outbox: who asks for what, and why not.
//!
//! Pure: the one task that owns the journal asks here, writes the record, and only then answers.

use maillage_consensus::command::{Envelope, UnixMillisField};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Prose};

use super::book::{Book, Entry, GlassReport, What, text_of};
use super::journal::WriteError;
use super::record::{End, GlassToken, Record};

/// The most entries at once: more than a site writes in a day. Beyond it nothing is taken that could not
/// be sent in a reasonable time.
const ENTRIES_MAX: usize = 1_000;

/// What is asked of the outbox.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// An exam is taken by break glass.
    Take { id: CommandId, exam: ExamId, user: Name, reason: Line },
    /// It is reported.
    Report { token: GlassToken, exam: ExamId, user: Name, key: CommandId, text: Prose, signature: Vec<u8> },
    /// It is given back.
    GiveBack { token: GlassToken, exam: ExamId, user: Name, reason: Line },
    /// A command is to be sent when a quorum is back.
    Queue(Box<Envelope>),
    /// The mesh is about to be asked to make an ordinary claim of a break-glass claim.
    Try { id: CommandId },
    /// The mesh decided about an entry as it was at a revision.
    Settle { id: CommandId, revision: u64, end: End },
    /// A person has taken note of how an entry ended.
    Drop { id: CommandId },
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// Somebody else here has the exam by break glass.
    #[error("already taken by break glass by {user} here")]
    Taken {
        /// Who.
        user: Name,
        /// Since when.
        since: UnixMillisField,
    },
    /// There is no such claim, it is another exam's or user's, or it ended.
    #[error("{0}")]
    NotHeld(&'static str),
    /// The mesh has made an ordinary claim of it, under this token.
    #[error("the mesh is reached again: the claim goes on under token {0}")]
    Continues(maillage_consensus::ids::FencingToken),
    /// The id names something else.
    #[error("this command id was used for another command")]
    OtherCommand,
    /// No entry has this id.
    #[error("the outbox has no such entry")]
    NoSuchEntry,
    /// It is still to be sent.
    #[error("it is not sent yet: what was acknowledged is not thrown away")]
    NotSent,
    /// It waits for nothing that could be queued.
    #[error("only reports, addenda and notes are kept for later")]
    NotQueueable,
    /// There are enough entries.
    #[error("the outbox is full: {ENTRIES_MAX} entries")]
    Full,
    /// It is not durable.
    #[error("not recorded: {0}")]
    NotDurable(#[from] WriteError),
    /// The entry changed meanwhile.
    #[error("the entry changed meanwhile")]
    Changed,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

/// What to write, if anything, before the entry of this id is the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) write: Option<Record>,
    pub(crate) id: CommandId,
}

impl Decision {
    fn write(id: CommandId, record: Record) -> Self {
        Self { write: Some(record), id }
    }

    fn nothing(id: CommandId) -> Self {
        Self { write: None, id }
    }
}

/// Decides.
///
/// # Errors
/// [`Refused`].
pub(crate) fn decide(book: &Book, ask: Ask, at: UnixMillisField) -> Result<Decision, Refused> {
    match ask {
        Ask::Take { id, exam, user, reason } => take(book, id, exam, user, reason, at),
        Ask::Report { token, exam, user, key, text, signature } => {
            report(book, token, exam, &user, GlassReport { key, text, signature, at })
        }
        Ask::GiveBack { token, exam, user, reason } => {
            let entry = held(book, token, exam, &user)?;
            let Some(glass) = entry.glass() else { return Err(Refused::NoSuchEntry) };
            match (&glass.report, &glass.given_back) {
                (Some(_), _) => Err(Refused::NotHeld("the exam was reported under this claim")),
                (None, Some(_)) => Ok(Decision::nothing(entry.id)),
                (None, None) => match &entry.end {
                    Some((End::Continues { token }, _)) => Err(Refused::Continues(*token)),
                    _ => Ok(Decision::write(entry.id, Record::GivenBack { id: entry.id, reason, at })),
                },
            }
        }
        Ask::Queue(envelope) => queue(book, &envelope, at),
        Ask::Try { id } => match book.get(id).ok_or(Refused::NoSuchEntry)?.glass() {
            Some(glass) if glass.tried => Ok(Decision::nothing(id)),
            Some(_) => Ok(Decision::write(id, Record::Tried { id })),
            None => Err(Refused::NoSuchEntry),
        },
        Ask::Settle { id, revision, end } => {
            let entry = book.get(id).ok_or(Refused::NoSuchEntry)?;
            if entry.revision != revision {
                return Err(Refused::Changed);
            }
            Ok(Decision::write(id, Record::Settled { id, end, at }))
        }
        Ask::Drop { id } => match book.get(id).ok_or(Refused::NoSuchEntry)?.end {
            Some(_) => Ok(Decision::write(id, Record::Dropped { id })),
            None => Err(Refused::NotSent),
        },
    }
}

fn take(
    book: &Book,
    id: CommandId,
    exam: ExamId,
    user: Name,
    reason: Line,
    at: UnixMillisField,
) -> Result<Decision, Refused> {
    if let Some(known) = book.get(id) {
        let same = known.glass().is_some() && known.exam == exam && known.user == user;
        return if same { Ok(Decision::nothing(id)) } else { Err(Refused::OtherCommand) };
    }
    let held = book.entries().find(|entry| entry.exam == exam && entry.is_held());
    if let Some(held) = held {
        if held.user != user {
            return Err(Refused::Taken { user: held.user.clone(), since: held.at });
        }
        return Ok(Decision::nothing(held.id));
    }
    let unsent = book.entries().filter(|entry| entry.exam == exam && entry.end.is_none());
    if unsent.filter_map(Entry::glass).any(|glass| glass.report.is_some()) {
        return Err(Refused::NotHeld("the exam was reported here by break glass, and the report waits to be sent"));
    }
    room(book)?;
    Ok(Decision::write(id, Record::Taken { id, exam, user, reason, at }))
}

/// The entry of a break-glass claim, if it is this user's and this exam's.
fn held<'b>(book: &'b Book, token: GlassToken, exam: ExamId, user: &Name) -> Result<&'b Entry, Refused> {
    let entry = book.get(token.0).filter(|entry| entry.glass().is_some() && entry.exam == exam);
    let entry = entry.ok_or(Refused::NotHeld("this site knows no such break-glass claim of this exam"))?;
    if !user.is_empty() && entry.user != *user {
        return Err(Refused::NotHeld("the break-glass claim is another user's"));
    }
    Ok(entry)
}

fn report(
    book: &Book,
    token: GlassToken,
    exam: ExamId,
    user: &Name,
    written: GlassReport,
) -> Result<Decision, Refused> {
    let entry = held(book, token, exam, user)?;
    let GlassReport { key, text, signature, at } = written;
    let Some(glass) = entry.glass() else { return Err(Refused::NoSuchEntry) };
    match &glass.report {
        Some(GlassReport { text: known, .. }) if *known == text => return Ok(Decision::nothing(entry.id)),
        Some(GlassReport { key: used, .. }) if *used == key => return Err(Refused::OtherCommand),
        Some(_) => return Err(Refused::NotHeld("the exam was reported under this claim: more is an addendum")),
        None => {}
    }
    if let Some((End::Continues { token }, _)) = &entry.end {
        return Err(Refused::Continues(*token));
    }
    // Given back and then reported all the same: a text is never thrown away.
    let record = Record::Reported { id: entry.id, key, text, signature, at };
    Ok(Decision::write(entry.id, record))
}

fn queue(book: &Book, envelope: &Envelope, at: UnixMillisField) -> Result<Decision, Refused> {
    let id = envelope.id;
    if let Some(known) = book.get(id) {
        // As the mesh tells commands apart: by all but when, where and in which format's words.
        let is_same =
            |queued: &Envelope| queued.user == envelope.user && queued.command.asks_for_the_same(&envelope.command);
        return match &known.what {
            What::Command(queued) if is_same(queued) => Ok(Decision::nothing(id)),
            _ => Err(Refused::OtherCommand),
        };
    }
    if text_of(&envelope.command).is_none() || envelope.command.exam().is_none() {
        return Err(Refused::NotQueueable);
    }
    room(book)?;
    Ok(Decision::write(id, Record::Queued { envelope: envelope.encode(), at }))
}

fn room(book: &Book) -> Result<(), Refused> {
    if book.entries().count() < ENTRIES_MAX { Ok(()) } else { Err(Refused::Full) }
}

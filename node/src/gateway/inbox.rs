//! The reports that come back: each once, in a file of its own in `inbox/`, from where the hospital takes it.
//!
//! ```text
//! ask behind the position ─> files in feed/staged, synced ─> feed/state (position, what is staged, what was
//! delivered), replaced ─> files moved into inbox/ ─> acknowledged to a centre ─> feed/state
//! ```
//! A crash before the state is replaced leaves files that no state names: they are removed, and asked for again.
//! After it, the files that it names are moved at the next start, those that were moved already being gone. So a
//! report that the hospital has taken out of the inbox never comes again, and none is missed. The highest number
//! delivered of each exam's reports is remembered too: whatever centre says what, no report comes twice.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use maillage_consensus::event::Cursor;
use maillage_host::Disk;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::ask::{AskError, ask};
use super::document::document;
use super::wire::{Ask, Delivery, Page, Position, Reply};
use super::{Complaints, Gateway, too_long};
use crate::checked::{self, Unreadable};

/// Where reports are left for the hospital.
const INBOX: &str = "inbox";
/// Where they are until that is known to be their place.
const STAGED: &str = "feed/staged";
const FEED: &str = "feed";
const STATE: &str = "feed/state";
/// What the state's file begins with.
const MAGIC: &[u8; 4] = b"MGWF";
const VERSION: u8 = 1;
/// The longest state: [`EXAMS_MAX`] exams of some 8 bytes, and a page of names.
const STATE_LEN_MAX: usize = 4 << 20;
/// Exams of which the last delivered report is remembered: some thirty years of one hospital. The oldest go.
const EXAMS_MAX: usize = 200_000;
/// Between two questions for what is new.
const ROUND: Duration = Duration::from_secs(1);
/// What is still to be delivered is gone through at the start, and this often: an exam may have become this
/// hospital's after its report was signed, and a hospital this gateway's.
const WALK: Duration = Duration::from_secs(3600);
/// A position that only moved is made durable this often: asking again for what was not for us costs little.
const SAVE: Duration = Duration::from_secs(30);

/// How far the feed is, for people.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// When a centre last said that there is nothing more.
    pub(super) at: Option<Instant>,
    /// Behind where.
    pub(super) position: Option<Position>,
    /// Delivered since the start.
    pub(super) delivered: u64,
    /// Of those, not acknowledged yet.
    pub(super) unacknowledged: usize,
}

/// What is durable of the feed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct State {
    /// Behind where to ask.
    position: Option<Position>,
    /// Files of `feed/staged` whose place is the inbox.
    staged: Vec<String>,
    /// Of each exam, the highest number of a report that was delivered.
    delivered: BTreeMap<u64, u32>,
    /// Delivered, and no centre knows.
    unacknowledged: Vec<(u64, u32)>,
}

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Not our bytes, or not all of them.
    #[error("feed/state is damaged: move it away, and every report that is still to be delivered comes again")]
    Damaged,
    /// Of another version.
    #[error("feed/state is of version {0}")]
    Version(u8),
    /// The disk failed.
    #[error("read feed/state: {0}")]
    Io(#[from] io::Error),
}

impl State {
    fn encode(&self) -> io::Result<Bytes> {
        let bytes = checked::encode(MAGIC, VERSION, self).map_err(io::Error::other)?;
        if bytes.len() > STATE_LEN_MAX { Err(too_long(STATE)) } else { Ok(bytes) }
    }

    fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        checked::decode(MAGIC, VERSION, bytes).map_err(|error| match error {
            Unreadable::Damaged => StateError::Damaged,
            Unreadable::Version(version) => StateError::Version(version),
        })
    }

    /// Whether a report is one that the hospital does not have.
    fn is_new(&self, delivery: &Delivery) -> bool {
        let report = &delivery.report;
        !report.stale && self.delivered.get(&report.exam.0).is_none_or(|highest| *highest < report.number)
    }

    fn note(&mut self, exam: u64, report: u32) {
        self.delivered.insert(exam, report);
        while self.delivered.len() > EXAMS_MAX {
            self.delivered.pop_first();
        }
        self.unacknowledged.push((exam, report));
    }
}

/// The feed's files.
#[derive(Debug)]
pub(super) struct Inbox {
    disk: Disk,
    state: State,
    saved: Instant,
    changed: bool,
    /// When to go through all that is still to be delivered.
    walk_at: Instant,
}

impl Inbox {
    /// Opens the feed, and finishes what the last process had begun.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) async fn open(disk: Disk) -> Result<Self, StateError> {
        for directory in [INBOX, FEED, STAGED] {
            disk.create_dir(directory).await?;
        }
        let state = match disk.read(STATE).await {
            Ok(bytes) => State::decode(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        let mut inbox = Self { disk, state, saved: now, changed: false, walk_at: now };
        inbox.deliver().await?;
        for left in inbox.disk.list(STAGED).await? {
            inbox.disk.remove(&format!("{STAGED}/{left}")).await?;
        }
        Ok(inbox)
    }

    /// Moves what is staged into the inbox. What was moved already is not there any more.
    async fn deliver(&mut self) -> io::Result<()> {
        if self.state.staged.is_empty() {
            return Ok(());
        }
        for name in &self.state.staged {
            match self.disk.rename(&format!("{STAGED}/{name}"), &format!("{INBOX}/{name}")).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.disk.sync_dir(INBOX).await?;
        self.disk.sync_dir(STAGED).await?;
        self.state.staged.clear();
        self.changed = true;
        Ok(())
    }

    /// Takes in a page: durable, in the inbox and to be acknowledged when this returns. How many were new.
    ///
    /// # Errors
    /// When the disk fails; nothing counts as delivered then, or all of it does.
    pub(super) async fn take(&mut self, page: &Page, mesh: &str, mesh_id: &str) -> io::Result<usize> {
        let mut next = State { position: Some(page.next), ..self.state.clone() };
        for delivery in &page.reports {
            if !next.is_new(delivery) {
                continue;
            }
            let (exam, report) = (delivery.report.exam.0, delivery.report.number);
            let name = format!("exam-{exam}-report-{report}.json");
            let file = self.disk.create(&format!("{STAGED}/{name}")).await?;
            file.set_len(0).await?;
            let text = format!("{:#}\n", document(delivery, mesh, mesh_id));
            file.write_at(0, vec![text.into()], true).await?;
            next.note(exam, report);
            next.staged.push(name);
        }
        let new = next.staged.len();
        if new > 0 {
            self.disk.sync_dir(STAGED).await?;
            self.disk.replace(STATE, next.encode()?).await?;
            (self.state, self.saved, self.changed) = (next, Instant::now(), false);
            self.deliver().await?;
        } else if self.state.position != next.position {
            (self.state, self.changed) = (next, true);
        }
        Ok(new)
    }

    /// Behind where to ask now.
    fn from(&self) -> Option<Position> {
        match self.state.position {
            Some(Position::Event { index, place }) if self.walk_at <= Instant::now() => {
                Some(Position::walk(Cursor { index, place }))
            }
            position => position,
        }
    }

    /// A page that was asked for from there is taken. A walk that nobody answered is still to be begun.
    fn walked(&mut self, from: Option<Position>) {
        if matches!(from, Some(Position::Exam { .. })) {
            self.walk_at = Instant::now() + WALK;
        }
    }

    /// A centre knows that a report was delivered.
    fn acknowledged(&mut self, exam: u64, report: u32) {
        self.state.unacknowledged.retain(|one| *one != (exam, report));
        self.changed = true;
    }

    /// Makes durable what only saves work.
    async fn save(&mut self) -> io::Result<()> {
        if self.changed {
            self.disk.replace(STATE, self.state.encode()?).await?;
            (self.saved, self.changed) = (Instant::now(), false);
        }
        Ok(())
    }
}

/// Why nothing is known of what is new.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("no centre answers")]
    Nobody,
    #[error("write it down: {0}")]
    Disk(#[from] io::Error),
}

/// Takes in reports until `shutdown`.
pub(super) async fn run(gateway: Gateway, mut inbox: Inbox, shutdown: CancellationToken) {
    let mut complaints = Complaints::default();
    while shutdown.run_until_cancelled(sleep(ROUND)).await.is_some() {
        // Not cut off in the middle of a file: what is under way ends in seconds.
        complaints.hear("take in reports", round(&gateway, &mut inbox).await);
        let mut seen = gateway.seen();
        seen.position = inbox.state.position;
        seen.unacknowledged = inbox.state.unacknowledged.len();
    }
    if let Err(error) = inbox.save().await {
        tracing::warn!(%error, "the feed's position was not saved: it is gone over again");
    }
}

async fn round(gateway: &Gateway, inbox: &mut Inbox) -> Result<(), FeedError> {
    // Another centre each time that one fails: it may be alone in what it cannot.
    let centres = gateway.schedule().answering();
    let mut last = FeedError::Nobody;
    for centre in centres {
        match tail(gateway, inbox, centre).await {
            Ok(()) => {
                if inbox.changed && inbox.saved.elapsed() >= SAVE {
                    inbox.save().await?;
                }
                return Ok(());
            }
            Err(error @ FeedError::Disk(_)) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes all that a centre has, and acknowledges.
async fn tail(gateway: &Gateway, inbox: &mut Inbox, centre: u64) -> Result<(), FeedError> {
    loop {
        let from = inbox.from();
        let Reply::Page(page) = ask(gateway.lines(), centre, &Ask::Feed { from }).await? else {
            return Err(AskError::Unexpected.into());
        };
        let (mesh, mesh_id) = {
            let mesh = gateway.mesh();
            (mesh.mesh_name.clone(), mesh.mesh_id.clone())
        };
        let new = inbox.take(&page, &mesh, &mesh_id).await?;
        inbox.walked(from);
        if new > 0 {
            tracing::info!(reports = new, "reports are in the inbox");
            gateway.metrics().gateway().reports(new as u64);
            gateway.seen().delivered += new as u64;
        }
        if !page.more || Some(page.next) == from {
            break;
        }
    }
    gateway.seen().at = Some(Instant::now());
    let owed = inbox.state.unacknowledged.len();
    let told = acknowledge(gateway, inbox, centre).await;
    if inbox.state.unacknowledged.len() < owed {
        inbox.save().await?;
    }
    Ok(told?)
}

/// Tells a centre of each report that was delivered: one that it does not take now holds up no other.
async fn acknowledge(gateway: &Gateway, inbox: &mut Inbox, centre: u64) -> Result<(), AskError> {
    let mut refused = None;
    for (exam, report) in inbox.state.unacknowledged.clone() {
        match ask(gateway.lines(), centre, &Ask::Acknowledge { exam, report }).await {
            Ok(Reply::Done) => inbox.acknowledged(exam, report),
            Ok(_) => refused = Some(AskError::Unexpected),
            // One that hears no quorum takes none of them, and is long about each.
            Err(error @ AskError::NotNow(_)) if gateway.schedule().is_in_touch(centre) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::delivery;
    use super::*;

    fn page(index: u64, reports: &[(u64, u32)]) -> Page {
        let reports = reports.iter().map(|(exam, report)| delivery(*exam, *report)).collect();
        Page { reports, next: Position::Event { index, place: 0 }, more: false }
    }

    async fn open(directory: &tempfile::TempDir) -> Inbox {
        Inbox::open(Disk::real(directory.path())).await.expect("it opens")
    }

    async fn names(inbox: &Inbox) -> Vec<String> {
        inbox.disk.list(INBOX).await.expect("a list")
    }

    #[tokio::test]
    async fn a_report_comes_once_whoever_says_it_how_often() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut inbox = open(&directory).await;
        assert_eq!(inbox.take(&page(5, &[(3, 1), (3, 2)]), "m", "ab").await.expect("taken"), 2);
        assert_eq!(names(&inbox).await, ["exam-3-report-1.json", "exam-3-report-2.json"]);
        // The hospital takes one out.
        inbox.disk.remove("inbox/exam-3-report-1.json").await.expect("removed");
        assert_eq!(inbox.take(&page(4, &[(3, 1), (3, 2), (9, 1)]), "m", "ab").await.expect("taken"), 1);
        assert_eq!(names(&inbox).await, ["exam-3-report-2.json", "exam-9-report-1.json"]);
        assert_eq!(inbox.state.unacknowledged, [(3, 1), (3, 2), (9, 1)]);
        inbox.acknowledged(3, 2);
        inbox.save().await.expect("saved");
        let mut inbox = open(&directory).await;
        assert_eq!(inbox.state.unacknowledged, [(3, 1), (9, 1)]);
        assert_eq!(inbox.take(&page(9, &[(3, 2)]), "m", "ab").await.expect("taken"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_walk_that_nobody_answered_is_begun_again_and_one_that_was_taken_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut inbox = open(&directory).await;
        assert_eq!(inbox.from(), None, "a gateway that was never told anything");
        inbox.take(&page(5, &[]), "m", "ab").await.expect("taken");
        let events = Some(Position::Event { index: 5, place: 0 });
        let walk = Some(Position::walk(Cursor { index: 5, place: 0 }));
        assert_eq!((inbox.from(), inbox.from()), (walk, walk), "nobody answered the first");
        inbox.take(&page(5, &[]), "m", "ab").await.expect("taken");
        inbox.walked(walk);
        assert_eq!(inbox.from(), events);
        sleep(WALK).await;
        assert_eq!(inbox.from(), walk);
    }

    #[tokio::test]
    async fn a_crash_at_any_step_loses_no_report_and_brings_none_back() {
        // Staged, and no state says so: asked for again.
        let directory = tempfile::tempdir().expect("a directory");
        let mut inbox = open(&directory).await;
        inbox.take(&page(5, &[(3, 1)]), "m", "ab").await.expect("taken");
        let old = inbox.disk.read(STATE).await.expect("a state");
        inbox.disk.replace("feed/staged/exam-4-report-1.json", Bytes::from_static(b"half")).await.expect("written");
        let mut inbox = open(&directory).await;
        assert_eq!(names(&inbox).await, ["exam-3-report-1.json"]);
        assert!(inbox.disk.list(STAGED).await.expect("a list").is_empty());
        assert_eq!(inbox.take(&page(6, &[(4, 1)]), "m", "ab").await.expect("taken"), 1);
        assert_ne!(inbox.disk.read(STATE).await.expect("a state"), old);

        // The state says so, and the files were not moved: they are at the next start.
        let mut state = inbox.state.clone();
        state.note(8, 1);
        state.staged.push("exam-8-report-1.json".to_owned());
        inbox.disk.replace("feed/staged/exam-8-report-1.json", Bytes::from_static(b"whole")).await.expect("written");
        inbox.disk.replace(STATE, state.encode().expect("encodes")).await.expect("written");
        let inbox = open(&directory).await;
        assert!(names(&inbox).await.contains(&"exam-8-report-1.json".to_owned()));

        // … and they were moved, and the hospital was quick.
        inbox.disk.replace(STATE, state.encode().expect("encodes")).await.expect("written");
        inbox.disk.remove("inbox/exam-8-report-1.json").await.expect("removed");
        let mut inbox = open(&directory).await;
        assert_eq!(inbox.take(&page(9, &[(8, 1)]), "m", "ab").await.expect("taken"), 0);
        assert!(!names(&inbox).await.contains(&"exam-8-report-1.json".to_owned()), "it is not brought back");
    }

    #[tokio::test]
    async fn a_damaged_state_is_told_and_the_encoding_of_version_1_does_not_change() {
        let mut state = State { position: Some(Position::Event { index: 300, place: 2 }), ..State::default() };
        state.note(5, 2);
        state.staged.push("exam-5-report-2.json".to_owned());
        let bytes = state.encode().expect("encodes");
        assert_eq!(State::decode(&bytes).expect("decodes"), state);
        expect_test::expect!["0100ac02020114"]
            .assert_eq(&data_encoding::HEXLOWER.encode(&bytes[5 + checked::HASH_LEN..][..7]));
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(State::decode(&flipped).is_err(), "byte {at}");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let disk = open(&directory).await.disk;
        disk.replace(STATE, Bytes::from_static(b"MGWF\x01nonsense")).await.expect("written");
        assert!(matches!(Inbox::open(disk).await, Err(StateError::Damaged)));
    }

    #[test]
    fn the_memory_of_what_was_delivered_is_bounded_and_fits_its_file() {
        let mut state = State::default();
        for exam in 0..EXAMS_MAX as u64 + 10 {
            state.note(exam << 30, 7);
            state.unacknowledged.clear();
        }
        assert_eq!(state.delivered.len(), EXAMS_MAX);
        assert!(state.delivered.first_key_value().is_some_and(|(exam, _)| *exam == 10 << 30), "the oldest went");
        assert!(state.encode().expect("encodes").len() < STATE_LEN_MAX);
    }
}

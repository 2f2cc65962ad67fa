//! The Raft log on disk: openraft's `RaftLogStorage` over segments of our own.
//!
//! `record.rs` is the format, `recovery.rs` opens it, `writer.rs` is the one task that writes it, and
//! `memory.rs` is what readers see. Measured against embedded stores when the design was made, an
//! append-only file with group commit is twice to four times as fast, and it alone can tell a torn
//! tail from rot.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use maillage_host::{Disk, DiskFile};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

mod memory;
mod record;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use record::Identity;
pub use recovery::LogError;

use super::halt::Halt;
use super::types::{Entry, LogId, TypeConfig, Vote};
use memory::{Memory, Place};
use record::Record;
use writer::{Done, Request, Writer};

/// Requests queued at the writer: enough for every core's worth of appends during one fsync.
const QUEUE: usize = 1024;
/// Bytes of entries read from disk, or handed to a follower, at a time.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// How much the log keeps where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// A segment's size before the next one is begun, bytes.
    pub(crate) segment_bytes: u64,
    /// Bytes by which a segment's file grows: zeroes written ahead, so that an fdatasync need not
    /// update the file's extents.
    pub(crate) extent_bytes: u64,
    /// Bytes of entries kept in memory.
    pub(crate) tail_bytes: usize,
    /// Entries kept in memory.
    pub(crate) tail_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, extent_bytes: 4 << 20, tail_bytes: 64 << 20, tail_entries: 100_000 }
    }
}

fn directory() -> &'static str {
    "raft/log"
}

fn segment_path(sequence: u64) -> String {
    format!("{}/{sequence:016x}.log", directory())
}

struct Shared {
    memory: Mutex<Memory>,
    /// When the write under way began.
    writing_since: Mutex<Option<Instant>>,
}

impl Shared {
    fn set_writing(&self, writing: bool) {
        *self.writing_since.lock().unwrap_or_else(PoisonError::into_inner) = writing.then(Instant::now);
    }
}

/// A handle of the log; every clone is also a reader.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
}

impl Log {
    /// Opens the log under `raft/log`, and starts its writer.
    ///
    /// # Errors
    /// [`LogError`]; rot is never repaired.
    pub(crate) async fn open(disk: &Disk, identity: Identity, limits: Limits, halt: Halt) -> Result<Self, LogError> {
        let recovered = recovery::recover(disk, &identity, &limits).await?;
        let memory = recovered.memory;
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            disk: disk.clone(),
            identity,
            limits,
            requests: receiver,
            halt,
            synced_to: recovered.current.as_ref().map_or(0, |current| current.offset),
            current: recovered.current,
            next_sequence: recovered.next_sequence,
            vote: memory.vote,
            purged: memory.purged,
            committed: memory.committed,
            committed_waits: false,
            shared: Arc::new(Shared { memory: Mutex::new(memory), writing_since: Mutex::default() }),
        };
        let shared = Arc::clone(&writer.shared);
        maillage_host::spawn(writer.run());
        Ok(Self { shared, requests })
    }

    /// Writes what is queued and ends the writer; later requests fail.
    pub(crate) async fn close(&self) {
        if let Err(error) = self.ask(Request::Close).await {
            tracing::warn!(%error, "the log was not closed cleanly");
        }
    }

    /// Begins a new segment. Returns the last index that may be in the files before it: when the log is purged up to
    /// there, they are gone.
    ///
    /// # Errors
    /// The disk's, which end the writer.
    pub(crate) async fn roll(&self) -> io::Result<u64> {
        self.ask(Request::Roll).await?;
        // Behind the answer, so at or beyond whatever was written before.
        Ok(self.memory().last.map_or(0, |last| last.index))
    }

    /// The last entry purged, whose predecessors only a snapshot holds.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.memory().purged
    }

    /// How long the write under way has taken so far.
    pub(crate) fn stalled_for(&self) -> Duration {
        let since = *self.shared.writing_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request) -> io::Result<()> {
        self.requests.send(request).await.map_err(|_| io::Error::other("the log is closed"))
    }

    async fn ask(&self, request: impl FnOnce(Done) -> Request) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(request(done)).await?;
        answer.await.map_err(|_| io::Error::other("the log is closed"))?
    }

    /// The entries in `from..to` that exist, of about `max_bytes` at most but at least one.
    async fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut found = self.memory().find(from, to, max_bytes)?;
        let mut entries = Vec::with_capacity(found.places.len() + found.tail.len());
        let mut places = found.places.as_slice();
        while let Some(first) = places.first() {
            let run = run_len(places);
            let file = found.files.get(&first.sequence).ok_or_else(|| io::Error::other("a log segment is not open"))?;
            read_run(file, &places[..run], found.first + entries.len() as u64, &mut entries).await?;
            places = &places[run..];
        }
        entries.append(&mut found.tail);
        Ok(entries)
    }
}

/// How many of `places` can be read at once: one segment, about [`READ_BYTES`].
fn run_len(places: &[Place]) -> usize {
    let Some(first) = places.first() else { return 0 };
    let fits = |place: &&Place| {
        place.sequence == first.sequence
            && place.offset >= first.offset
            && (place.offset - first.offset) as usize + place.len as usize <= READ_BYTES
    };
    places.iter().take_while(fits).count().max(1)
}

async fn read_run(file: &DiskFile, places: &[Place], first: u64, entries: &mut Vec<Entry>) -> io::Result<()> {
    let (Some(head), Some(tail)) = (places.first(), places.last()) else { return Ok(()) };
    let start = u64::from(head.offset);
    let bytes: Bytes = file.read_at(start, (tail.offset - head.offset + tail.len) as usize).await?;
    for (index, place) in (first..).zip(places) {
        let at = (place.offset - head.offset) as usize;
        match record::read(&bytes, place.sequence, start, at)? {
            Some((Record::Entry(entry), _)) if entry.log_id.index == index => entries.push(entry),
            _ => {
                let place = format!("segment {} at byte {}", place.sequence, place.offset);
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the log is corrupt in {place}")));
            }
        }
    }
    Ok(())
}

/// A range of indexes as `from..to`.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let (from, to) = bounds(&range);
        self.entries(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.entries(start, end, READ_BYTES).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let pages = stream::unfold((self.clone(), from), move |(log, from)| async move {
            let page = match log.entries(from, to, READ_BYTES).await {
                Ok(page) if page.is_empty() => return None,
                Ok(page) => page,
                Err(error) => return Some((vec![Err(error)], (log, u64::MAX))),
            };
            let next = page.last().map_or(u64::MAX, |entry| entry.log_id.index + 1);
            Some((page.into_iter().map(Ok).collect(), (log, next)))
        });
        use futures::StreamExt as _;
        // openraft asks once more after the end, which an unfold does not bear.
        Box::pin(pages.flat_map(|page: Vec<io::Result<Entry>>| stream::iter(page)).fuse())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.ask(|done| Request::Vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.memory().committed = committed;
        match committed {
            Some(id) => self.send(Request::Committed(id)).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let memory = self.memory();
        // A commit that a snapshot brought may be noted before the log below it is purged.
        Ok(memory.committed.min(memory.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.memory().append(&entries)?;
        self.send(Request::Append(entries, callback)).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.memory().truncate(last_log_id);
        self.ask(|done| Request::Truncate(last_log_id, done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.memory().purge(log_id);
        self.ask(|done| Request::Purge(log_id, done)).await
    }
}

//! The one task that writes the log.
//!
//! Everything queued while an fsync was under way goes out in the next write, with one fdatasync for
//! all (group commit). The committed index needs no durability, so it rides on the next write and is
//! written alone only when there is none for a while. A failed write or fsync is final: the kernel
//! may have dropped the pages, so retrying could acknowledge what is not on disk.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use maillage_host::Disk;
use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::memory::Place;
use super::record::{Identity, RecordWriter, header};
use super::recovery::Current;
use super::{Limits, Shared, directory, segment_path};
use crate::raft::codec::entry_len;
use crate::raft::halt::Halt;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};

/// Bytes gathered into one write before it goes out; one request may exceed it.
const GROUP_BYTES: usize = 4 << 20;
/// How long a committed index waits for a write to ride on.
const COMMITTED_WAIT: Duration = Duration::from_millis(200);

/// Who waits for a request to be durable.
pub(super) type Done = oneshot::Sender<io::Result<()>>;

/// What the writer is asked to do, in order.
pub(super) enum Request {
    Append(Vec<Entry>, IOFlushed<TypeConfig>),
    Vote(Vote, Done),
    Truncate(Option<LogId>, Done),
    Purge(LogId, Done),
    /// Begins the next segment, so that all that was written before can go as a whole.
    Roll(Done),
    /// Not made durable by itself.
    Committed(LogId),
    /// Writes what is left and ends.
    Close(Done),
}

impl Request {
    fn len(&self) -> usize {
        match self {
            Self::Append(entries, _) => entries.iter().map(|entry| entry_len(entry) + 32).sum(),
            _ => 64,
        }
    }

    fn complete(self, result: &Result<(), String>) {
        let result = result.clone().map_err(io::Error::other);
        match self {
            Self::Append(_, flushed) => flushed.io_completed(result),
            // The asker may be gone; nobody then needs the answer.
            Self::Vote(_, done)
            | Self::Truncate(_, done)
            | Self::Purge(_, done)
            | Self::Roll(done)
            | Self::Close(done) => {
                let _ = done.send(result);
            }
            Self::Committed(_) => {}
        }
    }
}

pub(super) struct Writer {
    pub(super) disk: Disk,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) shared: Arc<Shared>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) halt: Halt,
    pub(super) current: Option<Current>,
    pub(super) next_sequence: u64,
    /// Up to where the current segment is known to be synced.
    pub(super) synced_to: u64,
    /// What a new segment must begin with.
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    /// Whether `committed` is newer than what is in the file.
    pub(super) committed_waits: bool,
}

impl Writer {
    pub(super) async fn run(mut self) {
        while let Some((group, closing)) = self.gather().await {
            let sync = !group.is_empty();
            self.shared.set_writing(true);
            let result = self.write(&group, sync).await.map_err(|error| error.to_string());
            self.shared.set_writing(false);
            if let Err(error) = &result {
                self.halt.halt(format!("the log cannot be written: {error}"));
            }
            for request in group {
                request.complete(&result);
            }
            if let Err(error) = result {
                return self.refuse_all(error).await;
            }
            if closing {
                return;
            }
        }
    }

    /// Waits for the next group of requests. `None` when nobody can ask any more; an empty group
    /// when only a committed index is to be written. The flag says that the log is being closed.
    async fn gather(&mut self) -> Option<(Vec<Request>, bool)> {
        let mut group = Vec::new();
        let mut bytes = 0;
        loop {
            let next = if group.is_empty() {
                if self.committed_waits {
                    match tokio::time::timeout(COMMITTED_WAIT, self.requests.recv()).await {
                        Err(_) => return Some((group, false)),
                        Ok(next) => next?,
                    }
                } else {
                    self.requests.recv().await?
                }
            } else {
                match self.requests.try_recv() {
                    Ok(next) => next,
                    Err(_) => return Some((group, false)),
                }
            };
            match next {
                Request::Committed(id) => {
                    self.committed = Some(id);
                    self.committed_waits = true;
                }
                Request::Close(_) => {
                    group.push(next);
                    return Some((group, true));
                }
                other => {
                    bytes += other.len();
                    group.push(other);
                }
            }
            if bytes >= GROUP_BYTES {
                return Some((group, false));
            }
        }
    }

    async fn write(&mut self, group: &[Request], sync: bool) -> io::Result<()> {
        let bytes: usize = group.iter().map(Request::len).sum();
        let full =
            self.current.as_ref().is_some_and(|current| current.offset + bytes as u64 > self.limits.segment_bytes);
        if full || group.iter().any(|request| matches!(request, Request::Roll(_))) {
            self.seal().await?;
        }
        if self.current.is_none() {
            self.begin_segment().await?;
        }
        let Some(current) = &mut self.current else { return Err(io::Error::other("the log has no segment")) };
        let mut records = RecordWriter::new(current.sequence, current.offset, BytesMut::with_capacity(bytes + 128));
        records.mark(self.synced_to);
        let mut places = Vec::new();
        for request in group {
            match request {
                Request::Append(entries, _) => {
                    for entry in entries {
                        let offset = records.offset();
                        records.entry(entry);
                        places.push(place(current.sequence, offset, records.offset())?);
                    }
                }
                Request::Vote(vote, _) => {
                    records.vote(vote);
                    self.vote = Some(*vote);
                }
                Request::Truncate(after, _) => records.truncate(after.as_ref()),
                Request::Purge(upto, _) => {
                    records.purge(upto);
                    self.purged = Some(*upto);
                }
                Request::Roll(_) | Request::Committed(_) | Request::Close(_) => {}
            }
        }
        // Last, behind every entry that it may cover.
        if std::mem::take(&mut self.committed_waits)
            && let Some(committed) = &self.committed
        {
            records.committed(committed);
        }
        let end = records.offset();
        put(current, &self.limits, records.into_bytes(), end, sync).await?;
        if sync {
            self.synced_to = end;
        }
        let obsolete = self.publish(group, &places);
        self.remove_before(obsolete).await
    }

    /// Tells readers where the entries lie. Returns the oldest segment that is still needed, when
    /// a purge may have made others obsolete.
    fn publish(&self, group: &[Request], places: &[Place]) -> Option<u64> {
        let mut memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places = places.iter();
        let mut needed = None;
        for request in group {
            match request {
                Request::Append(entries, _) => {
                    for (entry, place) in entries.iter().zip(places.by_ref()) {
                        memory.placed(entry.log_id.index, *place);
                    }
                }
                Request::Truncate(after, _) => memory.truncate_places(*after),
                Request::Purge(upto, _) => needed = Some(memory.purge_places(*upto)),
                Request::Vote(vote, _) => memory.vote = Some(*vote),
                Request::Roll(_) | Request::Committed(_) | Request::Close(_) => {}
            }
        }
        memory.evict(&self.limits);
        let current = self.current.as_ref().map(|current| current.sequence);
        // Entries appended behind the purge in this very group lie in the current segment.
        needed.map(|needed| needed.or(current).unwrap_or(0))
    }

    /// Removes whole segments, oldest first and each durably before the next, so that a crash never
    /// leaves a gap.
    async fn remove_before(&mut self, needed: Option<u64>) -> io::Result<()> {
        let Some(needed) = needed else { return Ok(()) };
        let obsolete: Vec<u64> = {
            let memory = self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner);
            memory.segments.range(..needed).map(|(sequence, _)| *sequence).collect()
        };
        for sequence in obsolete {
            self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner).segments.remove(&sequence);
            self.disk.remove(&segment_path(sequence)).await?;
            self.disk.sync_dir(directory()).await?;
        }
        Ok(())
    }

    /// Completes the current segment.
    async fn seal(&mut self) -> io::Result<()> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let mut records = RecordWriter::new(current.sequence, current.offset, BytesMut::new());
        records.mark(self.synced_to);
        records.seal();
        let end = records.offset();
        put(&mut current, &self.limits, records.into_bytes(), end, true).await
    }

    /// Creates the next segment. It begins with the vote, the purge and the committed index, so that
    /// older segments can go.
    async fn begin_segment(&mut self) -> io::Result<()> {
        let sequence = self.next_sequence;
        let path = segment_path(sequence);
        let file = self.disk.create(&path).await?;
        let mut records = RecordWriter::new(sequence, 0, header(&self.identity, sequence));
        records.mark(0);
        if let Some(purged) = &self.purged {
            records.purge(purged);
        }
        if let Some(vote) = &self.vote {
            records.vote(vote);
        }
        if let Some(committed) = &self.committed {
            records.committed(committed);
        }
        let offset = records.offset();
        let mut current = Current { sequence, file: file.clone(), offset: 0, allocated: 0 };
        put(&mut current, &self.limits, records.into_bytes(), offset, true).await?;
        self.disk.sync_dir(directory()).await?;
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner).segments.insert(sequence, file);
        self.current = Some(current);
        self.synced_to = offset;
        self.next_sequence = sequence + 1;
        Ok(())
    }

    async fn refuse_all(mut self, error: String) {
        let result = Err(error);
        while let Some(request) = self.requests.recv().await {
            request.complete(&result);
        }
    }
}

fn place(sequence: u64, from: u64, to: u64) -> io::Result<Place> {
    let offset = u32::try_from(from).map_err(io::Error::other)?;
    let len = u32::try_from(to - from).map_err(io::Error::other)?;
    Ok(Place { sequence, offset, len })
}

/// Writes `bytes` at the segment's end, growing its file by whole extents of zeroes.
async fn put(current: &mut Current, limits: &Limits, bytes: Bytes, end: u64, sync: bool) -> io::Result<()> {
    if end > current.allocated {
        let grown = end.next_multiple_of(limits.extent_bytes);
        let mut from = current.allocated;
        while from < grown {
            let len = limits.extent_bytes.min(grown - from);
            let zeroes = BytesMut::zeroed(usize::try_from(len).map_err(io::Error::other)?).freeze();
            current.file.write_at(from, vec![zeroes], false).await?;
            from += len;
        }
        current.file.sync().await?;
        current.allocated = grown;
    }
    current.file.write_at(current.offset, vec![bytes], sync).await?;
    current.offset = end;
    Ok(())
}

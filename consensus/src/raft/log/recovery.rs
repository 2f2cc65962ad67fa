//! Opening the log: replay what is there, cut a torn tail, refuse rot.
//!
//! A bad record is a torn tail only in the last segment and only where nothing later says that the
//! place was synced (see `record.rs`). Everywhere else it is rot, and rot is never repaired here: an
//! entry that this node acknowledged would be lost in silence, and a quorum with it.

use std::io;

use bytes::Bytes;
use maillage_host::{Disk, DiskFile};

use super::memory::{Memory, Place};
use super::record::{self, HeaderError, Identity, Record, SEGMENT_HEADER};
use super::{Limits, directory, segment_path};

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that were durable are no longer what was written. The node must not vote with what is
    /// left: it is to be rebuilt as a new node.
    #[error("the log is corrupt in segment {segment} at byte {offset}: {detail}")]
    Corrupt {
        /// The segment's number.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        detail: &'static str,
    },
    /// The log is not this node's, or not of this version.
    #[error("segment {segment} of the log is not this node's: {detail}")]
    Foreign {
        /// The segment's number.
        segment: u64,
        /// In what it differs.
        detail: &'static str,
    },
    /// The disk failed.
    #[error("log: {0}")]
    Io(#[from] io::Error),
}

/// An opened log: its state, and where the next record goes.
pub(super) struct Recovered {
    pub(super) memory: Memory,
    /// The segment being written; `None` when the next write must begin a new one.
    pub(super) current: Option<Current>,
    /// The number that a new segment would have.
    pub(super) next_sequence: u64,
}

/// The segment being written.
pub(super) struct Current {
    pub(super) sequence: u64,
    pub(super) file: DiskFile,
    /// Where the next write goes.
    pub(super) offset: u64,
    /// Bytes of the file, zeroes beyond `offset`.
    pub(super) allocated: u64,
}

/// How reading a segment ended.
enum End {
    /// With a seal.
    Sealed,
    /// At a place where no valid record begins.
    NoRecord(usize),
}

pub(super) async fn recover(disk: &Disk, identity: &Identity, limits: &Limits) -> Result<Recovered, LogError> {
    disk.create_dir(directory()).await?;
    let mut sequences = Vec::new();
    for name in disk.list(directory()).await? {
        if let Some(sequence) = name.strip_suffix(".log").and_then(|hex| u64::from_str_radix(hex, 16).ok()) {
            sequences.push(sequence);
        }
    }
    sequences.sort_unstable();
    if let Some(gap) = sequences.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        return Err(LogError::Corrupt { segment: gap[0] + 1, offset: 0, detail: "a segment is missing" });
    }
    let mut replay = Replay { memory: Memory::default(), limits: *limits, any_entry: false };
    let mut current = None;
    let mut next_sequence = 1;
    for (at, &sequence) in sequences.iter().enumerate() {
        let is_last = at + 1 == sequences.len();
        let file = disk.open(&segment_path(sequence)).await?;
        let len = usize::try_from(file.len().await?).map_err(io::Error::other)?;
        let bytes = file.read_at(0, len).await?;
        match record::check_header(&bytes, identity, sequence) {
            Ok(()) => {}
            Err(HeaderError::Foreign(detail)) => return Err(LogError::Foreign { segment: sequence, detail }),
            // A crash while the segment was being created: nothing was ever acknowledged in it.
            Err(HeaderError::Bad) if is_last && !record::was_synced(&bytes, sequence, 0) => {
                tracing::warn!(segment = sequence, "an unfinished log segment is removed");
                disk.remove(&segment_path(sequence)).await?;
                disk.sync_dir(directory()).await?;
                next_sequence = sequence;
                break;
            }
            Err(HeaderError::Bad) => {
                return Err(LogError::Corrupt { segment: sequence, offset: 0, detail: "the header is bad" });
            }
        }
        let end = replay.segment(&bytes, sequence)?;
        replay.memory.segments.insert(sequence, file.clone());
        next_sequence = sequence + 1;
        match end {
            End::Sealed => {}
            End::NoRecord(offset) if is_last && !record::was_synced(&bytes, sequence, offset) => {
                current = Some(cut(file, sequence, offset, &bytes).await?);
            }
            End::NoRecord(offset) => {
                return Err(LogError::Corrupt {
                    segment: sequence,
                    offset: offset as u64,
                    detail: "a record that was durable is bad",
                });
            }
        }
    }
    replay.check(sequences.first().copied())?;
    // After a crash of the process alone, what was read may still be only in the page cache. It will
    // count as durable from here on, so it must be.
    if let Some((_, last)) = replay.memory.segments.last_key_value() {
        last.sync().await?;
    }
    disk.sync_dir(directory()).await?;
    Ok(Recovered { memory: replay.memory, current, next_sequence })
}

/// Makes the end of the last segment usable: zeroes from `offset` on.
async fn cut(file: DiskFile, sequence: u64, offset: usize, bytes: &Bytes) -> io::Result<Current> {
    let torn = bytes[offset..].iter().any(|byte| *byte != 0);
    if torn {
        tracing::warn!(segment = sequence, offset, "the torn tail of the log is cut");
        // What was torn must not be found again behind records written later.
        file.set_len(offset as u64).await?;
    }
    let allocated = if torn { offset } else { bytes.len() };
    Ok(Current { sequence, file, offset: offset as u64, allocated: allocated as u64 })
}

struct Replay {
    memory: Memory,
    limits: Limits,
    any_entry: bool,
}

impl Replay {
    fn segment(&mut self, bytes: &Bytes, sequence: u64) -> Result<End, LogError> {
        let mut at = SEGMENT_HEADER;
        loop {
            let corrupt = |detail| LogError::Corrupt { segment: sequence, offset: at as u64, detail };
            let (record, next) = match record::read(bytes, sequence, 0, at) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(End::NoRecord(at)),
                Err(_) => return Err(corrupt("a record makes no sense, or is of a newer version")),
            };
            match record {
                Record::Seal => return Ok(End::Sealed),
                Record::Mark(_) => {}
                Record::Vote(vote) => self.memory.vote = Some(vote),
                Record::Committed(id) => self.memory.committed = Some(id),
                Record::Truncate(after) => {
                    self.memory.truncate(after);
                    self.memory.truncate_places(after);
                }
                Record::Purge(upto) => {
                    self.memory.purge(upto);
                    self.memory.purge_places(upto);
                }
                Record::Entry(entry) => {
                    if !std::mem::replace(&mut self.any_entry, true) {
                        self.memory.restart();
                    }
                    let index = entry.log_id.index;
                    let (Ok(offset), Ok(len)) = (u32::try_from(at), u32::try_from(next - at)) else {
                        return Err(corrupt("the segment is too long"));
                    };
                    self.memory.append(&[entry]).map_err(|_| corrupt("entries are missing"))?;
                    self.memory.placed(index, Place { sequence, offset, len });
                    self.memory.evict(&self.limits);
                }
            }
            at = next;
        }
    }

    /// What the replayed log must satisfy as a whole, given the number of its first segment.
    fn check(&self, first_sequence: Option<u64>) -> Result<(), LogError> {
        let Some(segment) = first_sequence else { return Ok(()) };
        let (first, count) = self.memory.placed_range();
        let complete = match self.memory.purged {
            None => segment == 1,
            Some(purged) => count == 0 || first <= purged.index + 1,
        };
        if complete {
            Ok(())
        } else {
            Err(LogError::Corrupt { segment, offset: 0, detail: "older segments are missing" })
        }
    }
}

//! The bytes of a log segment.
//!
//! A segment is a header and records; a record is `[length u32][crc32 u32][kind u8][body]`, the
//! length counting kind and body. The checksum also covers the segment's number and the record's
//! offset, so that bytes that are right but in the wrong place are wrong.
//!
//! Every write begins with a *mark*, which says up to where the segment was synced before this write
//! began. That tells a torn tail from rot: pages of one unsynced write may reach the disk in any
//! order, so valid bytes beyond a bad record prove nothing, but a mark that calls the bad record
//! synced does.

use bytes::{BufMut, Bytes, BytesMut};

use crate::raft::codec::{Decoder, Encode, Malformed};
use crate::raft::types::{Entry, LogId, Vote};

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Bytes of a record before its kind.
const RECORD_HEADER: usize = 8;
/// Bytes of a mark.
const MARK_LEN: usize = RECORD_HEADER + 1 + 8;
/// The longest record taken for one: an entry with the longest command, and room.
const MAX_RECORD: usize = 8 << 20;

const MAGIC: [u8; 8] = *b"MLGRAFTL";
const VERSION: u32 = 1;

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const COMMITTED: u8 = 5;
const MARK: u8 = 6;
const SEAL: u8 = 7;

/// Whose log this is. A log of another node or mesh is never opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node_id: u64,
    pub(crate) mesh_id: [u8; 32],
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    /// Entries after this one are gone.
    Truncate(Option<LogId>),
    /// Entries up to this one are gone, and were applied.
    Purge(LogId),
    Committed(LogId),
    /// All bytes of the segment before this offset were synced before this record was written.
    Mark(u64),
    /// The segment is complete; the next one continues it.
    Seal,
}

impl Record {
    fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut decoder = Decoder::new(bytes);
        let record = match decoder.u8()? {
            ENTRY => Self::Entry(decoder.entry()?),
            VOTE => Self::Vote(decoder.vote()?),
            TRUNCATE => Self::Truncate(decoder.option_log_id()?),
            PURGE => Self::Purge(decoder.log_id()?),
            COMMITTED => Self::Committed(decoder.log_id()?),
            MARK => Self::Mark(decoder.u64()?),
            SEAL => Self::Seal,
            _ => return Err(Malformed("log record: unknown kind")),
        };
        decoder.finish()?;
        Ok(record)
    }
}

/// Why a segment's header is not one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Not written completely, or rotten.
    Bad,
    /// A header, but not of this log.
    Foreign(&'static str),
}

pub(super) fn header(identity: &Identity, sequence: u64) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(SEGMENT_HEADER);
    bytes.put_slice(&MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u64_le(sequence);
    bytes.put_u64_le(identity.node_id);
    bytes.put_slice(&identity.mesh_id);
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32_le(crc);
    bytes
}

pub(super) fn check_header(bytes: &Bytes, identity: &Identity, sequence: u64) -> Result<(), HeaderError> {
    if bytes.len() < SEGMENT_HEADER {
        return Err(HeaderError::Bad);
    }
    let mut decoder = Decoder::new(bytes.slice(..SEGMENT_HEADER));
    let mut fields = || -> Result<_, Malformed> {
        Ok((
            decoder.array::<8>()?,
            decoder.u32()?,
            decoder.u64()?,
            decoder.u64()?,
            decoder.array::<32>()?,
            decoder.u32()?,
        ))
    };
    let Ok((magic, version, number, node_id, mesh_id, crc)) = fields() else { return Err(HeaderError::Bad) };
    if magic != MAGIC || crc != crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]) {
        return Err(HeaderError::Bad);
    }
    if version != VERSION {
        return Err(HeaderError::Foreign("it was written by another version of the software"));
    }
    if number != sequence {
        return Err(HeaderError::Foreign("its name is that of another segment"));
    }
    if node_id != identity.node_id || mesh_id != identity.mesh_id {
        return Err(HeaderError::Foreign("it belongs to another node or mesh"));
    }
    Ok(())
}

fn checksum(sequence: u64, offset: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// Builds the bytes of one write at a known place of a segment.
pub(super) struct RecordWriter {
    sequence: u64,
    start: u64,
    bytes: BytesMut,
}

impl RecordWriter {
    /// A write at `start` of segment `sequence`; `bytes` may hold what precedes the first record.
    pub(super) fn new(sequence: u64, start: u64, bytes: BytesMut) -> Self {
        Self { sequence, start, bytes }
    }

    /// The offset in the segment where the next record goes.
    pub(super) fn offset(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }

    pub(super) fn entry(&mut self, entry: &Entry) {
        self.put(ENTRY, |bytes| bytes.put_entry(entry));
    }

    pub(super) fn vote(&mut self, vote: &Vote) {
        self.put(VOTE, |bytes| bytes.put_vote(vote));
    }

    pub(super) fn truncate(&mut self, after: Option<&LogId>) {
        self.put(TRUNCATE, |bytes| bytes.put_option_log_id(after));
    }

    pub(super) fn purge(&mut self, upto: &LogId) {
        self.put(PURGE, |bytes| bytes.put_log_id(upto));
    }

    pub(super) fn committed(&mut self, committed: &LogId) {
        self.put(COMMITTED, |bytes| bytes.put_log_id(committed));
    }

    pub(super) fn mark(&mut self, synced_to: u64) {
        self.put(MARK, |bytes| bytes.put_u64_le(synced_to));
    }

    pub(super) fn seal(&mut self) {
        self.put(SEAL, |_| ());
    }

    fn put(&mut self, kind: u8, body: impl FnOnce(&mut BytesMut)) {
        let offset = self.offset();
        let at = self.bytes.len();
        self.bytes.put_bytes(0, RECORD_HEADER);
        self.bytes.put_u8(kind);
        body(&mut self.bytes);
        let content = &self.bytes[at + RECORD_HEADER..];
        let crc = checksum(self.sequence, offset, content);
        let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        self.bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Reads the record at `at` of `bytes`, which begin at `start` of segment `sequence`. Returns what
/// it says and where the next one begins in `bytes`; `Ok(None)` when there is no valid record.
///
/// # Errors
/// When the checksum holds but the content makes no sense: it was written so.
pub(super) fn read(bytes: &Bytes, sequence: u64, start: u64, at: usize) -> Result<Option<(Record, usize)>, Malformed> {
    let Some(content) = content(bytes, sequence, start, at) else { return Ok(None) };
    let next = content.end;
    Ok(Some((Record::decode(bytes.slice(content))?, next)))
}

fn content(bytes: &[u8], sequence: u64, start: u64, at: usize) -> Option<std::ops::Range<usize>> {
    let header = bytes.get(at..at.checked_add(RECORD_HEADER)?)?;
    let (len, crc) = header.split_at(4);
    let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    if len == 0 || len > MAX_RECORD {
        return None;
    }
    let range = at + RECORD_HEADER..at + RECORD_HEADER + len;
    let content = bytes.get(range.clone())?;
    (checksum(sequence, start + at as u64, content) == crc).then_some(range)
}

/// Whether a mark at or after `at` calls the byte at `at` synced. `bytes` are a whole segment.
pub(super) fn was_synced(bytes: &Bytes, sequence: u64, at: usize) -> bool {
    let length = u32::try_from(MARK_LEN - RECORD_HEADER).unwrap_or(u32::MAX).to_le_bytes();
    let mut from = at;
    while from + MARK_LEN <= bytes.len() {
        // A mark begins with its length, which is not zero; most of what is searched is.
        if let Some(zeroes) = bytes.get(from..from + 256)
            && zeroes == [0; 256]
        {
            from += 256;
            continue;
        }
        let window = &bytes[from..from + MARK_LEN];
        let is_mark = window[..4] == length && window[RECORD_HEADER] == MARK;
        if is_mark
            && let Ok(Some((Record::Mark(synced_to), _))) = read(bytes, sequence, 0, from)
            && synced_to > at as u64
        {
            return true;
        }
        from += 1;
    }
    false
}

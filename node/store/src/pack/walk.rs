//! Walking a pack from record to record, past whatever is damaged.
//!
//! Headers only: payloads are judged by whoever reads them. Where no header is, the walk searches
//! for the next one of this pack; what lies between is a gap. The caller decides with
//! [`Walked::synced_before`] which gaps are rot and where a torn tail begins.

use std::io;

use bytes::Bytes;
use maillage_host::DiskFile;

use super::record::{MAGIC, RECORD_HEADER_LEN, RecordHeader};

/// How much is read at a time while searching.
const WINDOW_LEN: usize = 1 << 20;

/// A record where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Walked {
    pub(crate) offset: u64,
    pub(crate) header: RecordHeader,
}

impl Walked {
    /// The offset behind the payload.
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.header.record_len()
    }
}

/// What a walk found, in order of offset.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Records with an intact header; the last may reach beyond the file.
    pub(crate) records: Vec<Walked>,
    /// Stretches (offset, bytes) where no intact header is; never only zeroes up to the end.
    pub(crate) gaps: Vec<(u64, u64)>,
    /// Everything in the pack before this offset was durable once.
    pub(crate) synced_before: u64,
    /// Behind the last byte that is not zero, or the end of the last record.
    pub(crate) end: u64,
}

impl Walk {
    /// Walks from `from`, where a record begins or records end.
    pub(crate) async fn run(file: &DiskFile, from: u64, file_len: u64, salt: [u8; 8]) -> io::Result<Self> {
        let mut walk = Self { synced_before: from, end: from, ..Self::default() };
        let mut at = from;
        while at < file_len {
            let bytes = file.read_at(at, RECORD_HEADER_LEN).await?;
            if let Some(header) = RecordHeader::decode(&bytes, salt, at) {
                let record = Walked { offset: at, header };
                walk.synced_before = walk.synced_before.max(header.synced_before);
                walk.end = record.end();
                walk.records.push(record);
                at = record.end();
                continue;
            }
            let found = search(file, at, file_len, salt).await?;
            let Some(next) = found.next else {
                if let Some(end) = found.nonzero_end {
                    walk.gaps.push((at, end - at));
                    walk.end = end;
                }
                break;
            };
            walk.gaps.push((at, next - at));
            at = next;
        }
        Ok(walk)
    }
}

/// Where the first intact header is, from `from` on and before `end`.
pub(crate) async fn next_header(file: &DiskFile, from: u64, end: u64, salt: [u8; 8]) -> io::Result<Option<u64>> {
    Ok(search(file, from, end, salt).await?.next.filter(|next| *next < end))
}

struct Found {
    /// Where the next intact header is.
    next: Option<u64>,
    /// Behind the last byte that is not zero, if any is not.
    nonzero_end: Option<u64>,
}

/// Searches the first intact header at `from` or behind.
async fn search(file: &DiskFile, from: u64, file_len: u64, salt: [u8; 8]) -> io::Result<Found> {
    let mut found = Found { next: None, nonzero_end: None };
    let mut at = from;
    while at < file_len {
        // Windows overlap by a header, so that none is missed at a border.
        let window = file.read_at(at, WINDOW_LEN + RECORD_HEADER_LEN - 1).await?;
        if let Some(position) = first_header(&window, at, salt) {
            found.next = Some(at + position as u64);
            return Ok(found);
        }
        if let Some(position) = window.iter().rposition(|byte| *byte != 0) {
            found.nonzero_end = Some(at + position as u64 + 1);
        }
        if window.len() < WINDOW_LEN {
            break;
        }
        at += WINDOW_LEN as u64;
    }
    Ok(found)
}

fn first_header(window: &Bytes, offset: u64, salt: [u8; 8]) -> Option<usize> {
    let last = window.len().checked_sub(RECORD_HEADER_LEN)?;
    let mut at = 0;
    while at <= last {
        let next = window[at..=last].iter().position(|byte| *byte == MAGIC[0])?;
        at += next;
        if RecordHeader::decode(&window[at..], salt, offset + at as u64).is_some() {
            return Some(at);
        }
        at += 1;
    }
    None
}

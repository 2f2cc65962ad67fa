//! The bytes of the outbox's journal.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::OpenJournalError;
use crate::outbox::record::Record;

const FILE_MAGIC: [u8; 8] = *b"MLGOUTBX";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 8 + 1 + 8 + 32 + 4;
/// No text can hold it: its first byte is none of UTF-8's.
const RECORD_MAGIC: [u8; 4] = [0xff, b'M', b'O', b'B'];
const SEAL_MAGIC: [u8; 4] = [0xfe, b'S', b'L', b'D'];
const RECORD_HEADER: usize = 4 + 4 + 4 + 8;
/// Bytes of a seal.
pub(super) const SEAL_LEN: u64 = 8;
const SEAL: usize = 8;
/// The longest content taken for one: a report of the longest kind, and room.
const CONTENT_MAX: usize = 1 << 20;

/// Whose journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The site.
    pub(crate) site: u64,
    /// The mesh.
    pub(crate) mesh: [u8; 32],
}

/// The bytes before the first record.
pub(super) fn header(owner: &Owner) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN);
    bytes.put_slice(&FILE_MAGIC);
    bytes.put_u8(VERSION);
    bytes.put_u64(owner.site);
    bytes.put_slice(&owner.mesh);
    let crc = crc32fast::hash(&bytes);
    bytes.put_u32(crc);
    bytes
}

/// A record at `offset` of a file that is synced up to `synced_to`.
pub(super) fn record_bytes(offset: u64, synced_to: u64, record: &Record, sealed: bool) -> Bytes {
    let content = match postcard::to_stdvec(record) {
        Ok(content) => content,
        Err(error) => unreachable!("records have no sequence of unknown length: {error}"),
    };
    let mut bytes = BytesMut::with_capacity(RECORD_HEADER + content.len() + SEAL);
    bytes.put_slice(&RECORD_MAGIC);
    // A text's bound keeps contents far below 4 GiB.
    bytes.put_u32(u32::try_from(content.len()).unwrap_or(u32::MAX));
    bytes.put_u32(checksum(offset, synced_to, &content));
    bytes.put_u64(synced_to);
    bytes.put_slice(&content);
    let end = offset + (bytes.len() + SEAL) as u64;
    bytes.put_slice(&if sealed { seal(end) } else { [0; SEAL] });
    bytes.freeze()
}

/// The seal of a record that ends at `end`.
pub(super) fn seal(end: u64) -> [u8; SEAL] {
    let mut seal = [0; SEAL];
    seal[..4].copy_from_slice(&SEAL_MAGIC);
    seal[4..].copy_from_slice(&crc32fast::hash(&end.to_be_bytes()).to_be_bytes());
    seal
}

fn checksum(offset: u64, synced_to: u64, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_be_bytes());
    hasher.update(&synced_to.to_be_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// What a journal says, and where what can be read of it ends: before its torn tail, if it has one.
///
/// # Errors
/// [`OpenJournalError::Damaged`] when what is bad had been synced, [`OpenJournalError::Foreign`] when it
/// is another node's or version's.
pub(super) fn parse(bytes: &[u8], owner: &Owner) -> Result<(Vec<Record>, usize), OpenJournalError> {
    check_header(bytes, owner)?;
    let (mut records, mut at) = (Vec::new(), HEADER_LEN);
    while at < bytes.len() {
        let Some(read) = read(bytes, at) else {
            if was_synced(bytes, at) {
                return Err(OpenJournalError::Damaged { at });
            }
            break;
        };
        let record = postcard::from_bytes(&bytes[read.content.clone()]).map_err(|error| {
            OpenJournalError::Foreign(format!("of a later version: its record at byte {at} is not known ({error})"))
        })?;
        records.push(record);
        at = read.content.end + SEAL;
    }
    Ok((records, at))
}

fn check_header(bytes: &[u8], owner: &Owner) -> Result<(), OpenJournalError> {
    // The file came into being whole, by a rename: a bad header is never a torn one.
    let given = bytes.get(..HEADER_LEN).ok_or(OpenJournalError::Damaged { at: 0 })?;
    if given == &header(owner)[..] {
        return Ok(());
    }
    let (content, crc) = given.split_at(HEADER_LEN - 4);
    if given[..8] != FILE_MAGIC || crc32fast::hash(content).to_be_bytes() != crc {
        return Err(OpenJournalError::Damaged { at: 0 });
    }
    Err(OpenJournalError::Foreign(match content[8] {
        VERSION => "another site's".to_owned(),
        version => format!("of version {version}, and only {VERSION} is known"),
    }))
}

/// A record whose checksum holds.
struct Read {
    content: Range<usize>,
    synced_to: u64,
}

fn read(bytes: &[u8], at: usize) -> Option<Read> {
    let content = content(bytes, at)?;
    let header = &bytes[at..at + RECORD_HEADER];
    let crc = u32::from_be_bytes(header[8..12].try_into().ok()?);
    let synced_to = u64::from_be_bytes(header[12..20].try_into().ok()?);
    let holds = header[..4] == RECORD_MAGIC && checksum(at as u64, synced_to, &bytes[content.clone()]) == crc;
    holds.then_some(Read { content, synced_to })
}

/// Where a record's content is, by what it says of its length. Its seal fits behind it.
fn content(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let length = bytes.get(at..at + RECORD_HEADER)?.get(4..8)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    let content = at + RECORD_HEADER..at + RECORD_HEADER + length;
    (length <= CONTENT_MAX && content.end + SEAL <= bytes.len()).then_some(content)
}

/// Whether the bad record at `at` had been synced, by anything that says so.
fn was_synced(bytes: &[u8], at: usize) -> bool {
    let sealed = |end: usize| bytes.get(end - SEAL..end).is_some_and(|bytes| bytes == seal(end as u64));
    if sealed(bytes.len()) || content(bytes, at).is_some_and(|content| sealed(content.end + SEAL)) {
        return true;
    }
    let later = memchr::memmem::find_iter(&bytes[at + 1..], &RECORD_MAGIC);
    later.filter_map(|found| read(bytes, at + 1 + found)).any(|record| record.synced_to > at as u64)
}

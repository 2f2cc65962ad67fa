//! The keys of the replicated state. Persisted and in every snapshot: tags are kept stable, numbers
//! are big-endian so that key order is number order. Tag 0x00 belongs to the Raft layer.

use crate::command::UnixMillisField;
use crate::exam::Priority;
use crate::ids::{CommandId, ExamId, PeerKey, SiteId};

pub(crate) const MESH: [u8; 1] = [0x01];
pub(crate) const CLOCK: [u8; 1] = [0x02];
pub(crate) const COUNTS: [u8; 1] = [0x03];
pub(crate) const SITES: [u8; 1] = [0x10];
pub(crate) const TOKENS: [u8; 1] = [0x12];
pub(crate) const EXAMS: [u8; 1] = [0x20];
pub(crate) const WAITING: [u8; 1] = [0x21];
/// No place of the waiting room before this key is taken. Claims empty the room from its front, and an
/// LSM walks over every removed key that it has not compacted yet: without the floor, each claim of a
/// busy night would cost the next one more.
pub(crate) const WAITING_FLOOR: [u8; 1] = [0x27];
pub(crate) const CLAIMS: [u8; 1] = [0x22];
pub(crate) const ENDED: [u8; 1] = [0x23];
pub(crate) const STUDIES: [u8; 1] = [0x30];
pub(crate) const BELOW_WANTED: [u8; 1] = [0x31];
pub(crate) const OUTCOME_ENDS: [u8; 1] = [0x41];
/// The last kept outcome that was forgotten: where to look for the next.
pub(crate) const OUTCOME_CURSOR: [u8; 1] = [0x42];

fn join(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(tag);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub(crate) fn site(id: SiteId) -> Vec<u8> {
    join(SITES[0], &[&id.0.to_be_bytes()])
}

/// From a peer's identity to its site's number.
pub(crate) fn peer(key: &PeerKey) -> Vec<u8> {
    join(0x11, &[key.as_bytes()])
}

pub(crate) fn token(key: &PeerKey) -> Vec<u8> {
    join(TOKENS[0], &[key.as_bytes()])
}

pub(crate) fn exam(id: ExamId) -> Vec<u8> {
    join(EXAMS[0], &[&id.0.to_be_bytes()])
}

/// The waiting room, in the order in which it is to be read: by urgency, then by when each is due.
pub(crate) fn waiting(priority: Priority, due_at: UnixMillisField, exam: ExamId) -> Vec<u8> {
    join(WAITING[0], &[&[priority as u8], &due_at.0.to_be_bytes(), &exam.0.to_be_bytes()])
}

/// The exams claimed at one site.
pub(crate) fn claims_of(site: SiteId) -> Vec<u8> {
    join(CLAIMS[0], &[&site.0.to_be_bytes()])
}

pub(crate) fn claim(site: SiteId, exam: ExamId) -> Vec<u8> {
    join(CLAIMS[0], &[&site.0.to_be_bytes(), &exam.0.to_be_bytes()])
}

/// Exams that ended, newest first.
pub(crate) fn ended(at: UnixMillisField, exam: ExamId) -> Vec<u8> {
    join(ENDED[0], &[&(u64::MAX - at.0).to_be_bytes(), &exam.0.to_be_bytes()])
}

pub(crate) fn workitems_of(exam: ExamId) -> Vec<u8> {
    join(0x24, &[&exam.0.to_be_bytes()])
}

pub(crate) fn workitem(exam: ExamId, number: u32) -> Vec<u8> {
    join(0x24, &[&exam.0.to_be_bytes(), &number.to_be_bytes()])
}

pub(crate) fn reports_of(exam: ExamId) -> Vec<u8> {
    join(0x25, &[&exam.0.to_be_bytes()])
}

pub(crate) fn report(exam: ExamId, number: u32) -> Vec<u8> {
    join(0x25, &[&exam.0.to_be_bytes(), &number.to_be_bytes()])
}

/// From an accession number to the exams that bear it. Hashed, so that one number is never the
/// prefix of another.
pub(crate) fn accessions_of(accession: &str) -> Vec<u8> {
    join(0x26, &[blake3::hash(accession.as_bytes()).as_bytes()])
}

pub(crate) fn accession(accession: &str, exam: ExamId) -> Vec<u8> {
    join(0x26, &[blake3::hash(accession.as_bytes()).as_bytes(), &exam.0.to_be_bytes()])
}

pub(crate) fn study(uid: &str) -> Vec<u8> {
    join(STUDIES[0], &[uid.as_bytes()])
}

pub(crate) fn below_wanted(uid: &str) -> Vec<u8> {
    join(BELOW_WANTED[0], &[uid.as_bytes()])
}

pub(crate) fn outcome(id: CommandId) -> Vec<u8> {
    join(0x40, &[id.0.as_bytes()])
}

/// Kept outcomes by when they were given, so that the oldest are found.
pub(crate) fn outcome_end(at: UnixMillisField, id: CommandId) -> Vec<u8> {
    join(OUTCOME_ENDS[0], &[&at.0.to_be_bytes(), id.0.as_bytes()])
}

/// The last eight bytes of a key, as a number.
pub(crate) fn trailing_number(key: &[u8]) -> Option<u64> {
    let tail = key.len().checked_sub(8)?;
    Some(u64::from_be_bytes(key[tail..].try_into().ok()?))
}

//! The keys of the replicated state. Persisted and in every snapshot: tags are kept stable, numbers
//! are big-endian so that key order is number order. Tag 0x00 belongs to the Raft layer.

use crate::command::UnixMillisField;
use crate::event::Cursor;
use crate::exam::Priority;
use crate::ids::{CommandId, ExamId, KeyId, PeerKey, SiteId};

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
/// Final reports' times, in the order of their signing.
pub(crate) const TURNAROUNDS: [u8; 1] = [0x2a];
/// Critical results that nobody has acknowledged, by when they escalate.
pub(crate) const CRITICALS: [u8; 1] = [0x2b];
/// Exams whose request waits for a regulator.
pub(crate) const REGULATION: [u8; 1] = [0x2d];
/// Workitems that are no readings, by the site where each is performed.
pub(crate) const PERFORMED: [u8; 1] = [0x2e];
pub(crate) const STUDIES: [u8; 1] = [0x30];
pub(crate) const BELOW_WANTED: [u8; 1] = [0x31];
/// Studies of which another site than the one that received them holds images that must not leave it. The
/// value: the manifests, one after the other, that the receiving site has verified since.
pub(crate) const STRAYED: [u8; 1] = [0x35];
/// How a study was counted when it was last written: one byte.
pub(crate) const COUNTED: [u8; 1] = [0x36];
/// … the bit of it that says that a part stays where it was received.
pub(crate) const COUNTED_CONFINED: u8 = 4;
/// The layout that holds, and the one that is staged.
pub(crate) const PLACEMENT: [u8; 1] = [0x37];
/// Sites that take no copies, or took none once.
pub(crate) const STANDINGS: [u8; 1] = [0x38];
/// What is left of purged parts, by exam.
pub(crate) const TOMBSTONES: [u8; 1] = [0x32];
/// Purged parts that a site has not confirmed, by site and study.
pub(crate) const PURGES: [u8; 1] = [0x33];
/// When something of a study was last purged, by study.
const PURGED_AT: u8 = 0x3c;
/// Keys under which images are sealed, by name; of those that were destroyed, that they were.
pub(crate) const STUDY_KEYS: [u8; 1] = [0x39];
/// What keys were destroyed last.
pub(crate) const DESTRUCTION: [u8; 1] = [0x3b];
pub(crate) const OUTCOME_ENDS: [u8; 1] = [0x41];
/// The audit trail, by log index.
pub(crate) const AUDIT: [u8; 1] = [0x50];
/// The audit chain's value now.
pub(crate) const CHAIN: [u8; 1] = [0x51];
pub(crate) const EVENTS: [u8; 1] = [0x52];
/// The last event that was forgotten: where to look for the next, and how far back a client may ask.
pub(crate) const EVENT_CURSOR: [u8; 1] = [0x53];
pub(crate) const ATTESTATIONS: [u8; 1] = [0x54];
pub(crate) const HOSPITALS: [u8; 1] = [0x60];
pub(crate) const POLICY: [u8; 1] = [0x62];
pub(crate) const SUBSCRIPTIONS: [u8; 1] = [0x63];
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

/// A study of which images are where they must not be.
pub(crate) fn strayed(study: &str) -> Vec<u8> {
    join(STRAYED[0], &[study.as_bytes()])
}

/// How a study was counted.
pub(crate) fn counted(study: &str) -> Vec<u8> {
    join(COUNTED[0], &[study.as_bytes()])
}

/// Whether a site takes copies.
pub(crate) fn standing(site: SiteId) -> Vec<u8> {
    join(STANDINGS[0], &[&site.0.to_be_bytes()])
}

/// When something of a study was last purged.
pub(crate) fn purged_at(study: &str) -> Vec<u8> {
    join(PURGED_AT, &[study.as_bytes()])
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

/// The places of one level of urgency.
pub(crate) fn waiting_level(priority: Priority) -> Vec<u8> {
    join(WAITING[0], &[&[priority as u8]])
}

/// No place of a level before this key is taken, as [`WAITING_FLOOR`] says of the whole room.
pub(crate) fn waiting_floor(priority: Priority) -> Vec<u8> {
    join(WAITING_FLOOR[0], &[&[priority as u8]])
}

/// The floor of the level whose places start with `prefix`.
pub(crate) fn floor_of_level(prefix: &[u8]) -> Vec<u8> {
    join(WAITING_FLOOR[0], &[prefix.get(1..).unwrap_or_default()])
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

pub(crate) fn remarks_of(exam: ExamId) -> Vec<u8> {
    join(0x28, &[&exam.0.to_be_bytes()])
}

pub(crate) fn remark(exam: ExamId, number: u32) -> Vec<u8> {
    join(0x28, &[&exam.0.to_be_bytes(), &number.to_be_bytes()])
}

/// From a UID that a client chose to its workitem. Hashed, so that one UID is never the prefix of another.
pub(crate) fn workitem_uid(uid: &str) -> Vec<u8> {
    join(0x29, &[blake3::hash(uid.as_bytes()).as_bytes()])
}

pub(crate) fn turnaround(reported_at: UnixMillisField, exam: ExamId) -> Vec<u8> {
    join(TURNAROUNDS[0], &[&reported_at.0.to_be_bytes(), &exam.0.to_be_bytes()])
}

/// The first final report at or after a time.
pub(crate) fn turnarounds_from(at: UnixMillisField) -> Vec<u8> {
    join(TURNAROUNDS[0], &[&at.0.to_be_bytes()])
}

pub(crate) fn critical(due_at: UnixMillisField, exam: ExamId, remark: u32) -> Vec<u8> {
    join(CRITICALS[0], &[&due_at.0.to_be_bytes(), &exam.0.to_be_bytes(), &remark.to_be_bytes()])
}

pub(crate) fn awaiting_regulation(exam: ExamId) -> Vec<u8> {
    join(REGULATION[0], &[&exam.0.to_be_bytes()])
}

/// The workitems, other than readings, that are performed at one site.
pub(crate) fn performed_at(site: SiteId) -> Vec<u8> {
    join(PERFORMED[0], &[&site.0.to_be_bytes()])
}

pub(crate) fn performed(site: SiteId, exam: ExamId, number: u32) -> Vec<u8> {
    join(PERFORMED[0], &[&site.0.to_be_bytes(), &exam.0.to_be_bytes(), &number.to_be_bytes()])
}

/// The exam and the workitem's number in such a key.
pub(crate) fn workitem_of(key: &[u8]) -> Option<(ExamId, u32)> {
    let exam = u64::from_be_bytes(key.get(9..17)?.try_into().ok()?);
    let number = u32::from_be_bytes(key.get(17..21)?.try_into().ok()?);
    Some((ExamId(exam), number))
}

pub(crate) fn audit(index: u64) -> Vec<u8> {
    join(AUDIT[0], &[&index.to_be_bytes()])
}

pub(crate) fn event(cursor: Cursor) -> Vec<u8> {
    join(EVENTS[0], &[&cursor.index.to_be_bytes(), &cursor.place.to_be_bytes()])
}

/// The cursor in an event's key.
pub(crate) fn cursor_of(key: &[u8]) -> Option<Cursor> {
    let index = u64::from_be_bytes(key.get(1..9)?.try_into().ok()?);
    let place = u16::from_be_bytes(key.get(9..11)?.try_into().ok()?);
    Some(Cursor { index, place })
}

pub(crate) fn attestation(site: SiteId) -> Vec<u8> {
    join(ATTESTATIONS[0], &[&site.0.to_be_bytes()])
}

/// A hospital by its name. Hashed: names are long, and one may be the prefix of another.
pub(crate) fn hospital(name: &str) -> Vec<u8> {
    join(HOSPITALS[0], &[blake3::hash(name.as_bytes()).as_bytes()])
}

pub(crate) fn situation(site: SiteId) -> Vec<u8> {
    join(0x61, &[&site.0.to_be_bytes()])
}

pub(crate) fn subscription(aet: &str, workitem: Option<(ExamId, u32)>) -> Vec<u8> {
    let (exam, number) = workitem.unwrap_or((ExamId(0), 0));
    join(SUBSCRIPTIONS[0], &[blake3::hash(aet.as_bytes()).as_bytes(), &exam.0.to_be_bytes(), &number.to_be_bytes()])
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

/// The parts of an exam that were purged.
pub(crate) fn tombstones_of(exam: ExamId) -> Vec<u8> {
    join(TOMBSTONES[0], &[&exam.0.to_be_bytes()])
}

pub(crate) fn tombstone(exam: ExamId, study: &str, origin: SiteId) -> Vec<u8> {
    let study = blake3::hash(study.as_bytes());
    join(TOMBSTONES[0], &[&exam.0.to_be_bytes(), study.as_bytes(), &origin.0.to_be_bytes()])
}

/// What a site has not confirmed.
pub(crate) fn purges_of(site: SiteId) -> Vec<u8> {
    join(PURGES[0], &[&site.0.to_be_bytes()])
}

/// … of one study.
pub(crate) fn purges_of_study(site: SiteId, study: &str) -> Vec<u8> {
    join(PURGES[0], &[&site.0.to_be_bytes(), blake3::hash(study.as_bytes()).as_bytes()])
}

pub(crate) fn purge(site: SiteId, study: &str, exam: ExamId, origin: SiteId) -> Vec<u8> {
    [&purges_of_study(site, study)[..], &exam.0.to_be_bytes(), &origin.0.to_be_bytes()].concat()
}

/// The key of the tombstone that such a key stands for.
pub(crate) fn tombstone_of(purge: &[u8]) -> Option<Vec<u8>> {
    let (study, rest) = (purge.get(9..41)?, purge.get(41..57)?);
    Some(join(TOMBSTONES[0], &[&rest[..8], study, &rest[8..]]))
}

/// The highest number under which a site published a study that was purged.
pub(crate) fn last_purged(study: &str, origin: SiteId) -> Vec<u8> {
    join(0x34, &[blake3::hash(study.as_bytes()).as_bytes(), &origin.0.to_be_bytes()])
}

pub(crate) fn study_key(id: KeyId) -> Vec<u8> {
    join(STUDY_KEYS[0], &[&id.0])
}

/// The keys of a site's part of a study that are not destroyed. The study is hashed: one UID may be the prefix of
/// another.
pub(crate) fn study_keys_of(study: &str, origin: SiteId) -> Vec<u8> {
    join(0x3a, &[blake3::hash(study.as_bytes()).as_bytes(), &origin.0.to_be_bytes()])
}

/// One of them.
pub(crate) fn study_key_of(study: &str, origin: SiteId, id: KeyId) -> Vec<u8> {
    [&study_keys_of(study, origin)[..], &id.0].concat()
}

/// The name at the end of such a key.
pub(crate) fn trailing_key_id(key: &[u8]) -> Option<KeyId> {
    key.last_chunk::<16>().copied().map(KeyId)
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

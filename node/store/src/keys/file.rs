//! The file of pending keys: those that have sealed images here and that the mesh does not have yet.
//!
//! It lies beside the packs and not among them, so that a backup of the packs is none of the keys. It is small,
//! and written anew at each change, synced and renamed; the file that it replaces is overwritten with zeroes
//! before its blocks are free. Entries have one size, each stands twice, and each has a checksum: damage costs
//! an entry at most, and one of which both copies are damaged is kept as it is, for whoever can mend it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use maillage_host::Disk;
use zeroize::Zeroizing;

use crate::seal::{KeyId, SECRET_BYTES, StudyKey};

/// Begins the file; the last byte is its version.
const HEADER: &[u8; 8] = b"MAILKEY\x01";
const ID_BYTES: usize = 16;
/// The longest Study Instance UID (PS3.5 section 9.1).
const UID_BYTES: usize = 64;
const CHECKSUM_BYTES: usize = 4;
/// Id, secret, length of the UID, the UID and zeroes, CRC-32 (LE) of all that.
const ENTRY_BYTES: usize = ID_BYTES + SECRET_BYTES + 1 + UID_BYTES + CHECKSUM_BYTES;
/// No space left on the device (the same number on every Unix).
const ENOSPC: i32 = 28;

type RawEntry = Zeroizing<[u8; ENTRY_BYTES]>;

/// The file and what is in it.
pub(super) struct PendingFile {
    disk: Disk,
    path: String,
    content: Mutex<Content>,
    /// Held over a change.
    turn: tokio::sync::Mutex<()>,
    /// A write or sync failed: what is on the disk is not known any more.
    is_failed: AtomicBool,
}

#[derive(Clone, Default)]
struct Content {
    keys: BTreeMap<KeyId, Pending>,
    damaged: Vec<[RawEntry; 2]>,
}

#[derive(Clone)]
struct Pending {
    study_uid: String,
    key: Arc<StudyKey>,
}

impl PendingFile {
    pub(super) async fn open(disk: Disk, path: String) -> io::Result<Self> {
        // What a crash left of a change has keys in it, too.
        disk.remove(&replacement(&path)).await?;
        let content = match disk.read(&path).await {
            Ok(bytes) => decode(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error),
        };
        let (turn, is_failed) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Ok(Self { disk, path, content: Mutex::new(content), turn, is_failed })
    }

    pub(super) fn len(&self) -> usize {
        self.content().keys.len()
    }

    /// Whether nothing is changed any more, until a restart.
    pub(super) fn is_failed(&self) -> bool {
        self.is_failed.load(Ordering::Relaxed)
    }

    /// Entries of which no copy can be read.
    pub(super) fn damaged(&self) -> usize {
        self.content().damaged.len()
    }

    pub(super) fn find(&self, id: KeyId) -> Option<Arc<StudyKey>> {
        self.content().keys.get(&id).map(|pending| Arc::clone(&pending.key))
    }

    pub(super) fn of_study(&self, study_uid: &str) -> Vec<Arc<StudyKey>> {
        let content = self.content();
        let of_it = content.keys.values().filter(|pending| pending.study_uid == study_uid);
        of_it.map(|pending| Arc::clone(&pending.key)).collect()
    }

    pub(super) fn studies(&self) -> BTreeSet<String> {
        self.content().keys.values().map(|pending| pending.study_uid.clone()).collect()
    }

    /// Adds a key; it is durable when this returns.
    pub(super) async fn add(&self, study_uid: &str, key: &Arc<StudyKey>) -> io::Result<()> {
        if study_uid.len() > UID_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a study UID has more than 64 bytes"));
        }
        let pending = Pending { study_uid: study_uid.to_owned(), key: Arc::clone(key) };
        self.change(|content| content.keys.insert(key.id(), pending).is_none()).await
    }

    /// Takes keys out.
    pub(super) async fn remove(&self, ids: &BTreeSet<KeyId>) -> io::Result<()> {
        self.change(|content| {
            let before = content.keys.len();
            content.keys.retain(|id, _| !ids.contains(id));
            content.keys.len() < before
        })
        .await
    }

    /// Makes a change durable, then visible. `change` says whether there is any.
    async fn change(&self, change: impl FnOnce(&mut Content) -> bool) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        let mut next = self.content().clone();
        if !change(&mut next) {
            return Ok(());
        }
        if self.is_failed() {
            return Err(io::Error::other("the file of pending keys could not be written: restart the node"));
        }
        if let Err(error) = self.write(&next).await {
            // Want of room passes. After any other error nothing may be assumed of what was written.
            let is_full = error.kind() == io::ErrorKind::StorageFull || error.raw_os_error() == Some(ENOSPC);
            if !is_full {
                tracing::error!(%error, "no more keys are made: restart the node once the disk is sound");
                self.is_failed.store(true, Ordering::Relaxed);
            }
            return Err(error);
        }
        *self.content() = next;
        Ok(())
    }

    async fn write(&self, content: &Content) -> io::Result<()> {
        let old = match self.disk.open(&self.path).await {
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        self.disk.replace(&self.path, encode(content)).await?;
        if let Some(old) = old
            && let Err(error) = wipe(&old).await
        {
            // The new file stands; of the old one only free blocks are left.
            tracing::warn!(%error, "the replaced file of pending keys was not overwritten");
        }
        Ok(())
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Overwrites a file that has no name any more.
async fn wipe(old: &maillage_host::DiskFile) -> io::Result<()> {
    let len = usize::try_from(old.len().await?).map_err(io::Error::other)?;
    match old.write_at(0, vec![Bytes::from(vec![0; len])], true).await {
        // Synced, and said to be no file any more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// What [`Disk::replace`] writes before it has its name.
fn replacement(path: &str) -> String {
    format!("{path}.new")
}

fn encode(content: &Content) -> Bytes {
    let entries: Vec<[RawEntry; 2]> = content
        .keys
        .values()
        .map(|pending| {
            let entry = raw(pending);
            [entry.clone(), entry]
        })
        .chain(content.damaged.iter().cloned())
        .collect();
    let mut bytes = Vec::with_capacity(HEADER.len() + 2 * ENTRY_BYTES * entries.len());
    bytes.extend_from_slice(HEADER);
    // The second copies apart from the first: a damaged sector seldom costs both.
    for copy in 0..2 {
        entries.iter().for_each(|entry| bytes.extend_from_slice(&entry[copy][..]));
    }
    bytes.into()
}

fn raw(pending: &Pending) -> RawEntry {
    let uid = pending.study_uid.as_bytes();
    let mut bytes = Zeroizing::new(Vec::with_capacity(ENTRY_BYTES));
    bytes.extend_from_slice(&pending.key.id().0);
    bytes.extend_from_slice(pending.key.secret());
    bytes.push(u8::try_from(uid.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(uid);
    bytes.resize(ENTRY_BYTES - CHECKSUM_BYTES, 0);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    let mut entry = RawEntry::new([0; ENTRY_BYTES]);
    entry.copy_from_slice(&bytes);
    entry
}

fn decode(bytes: &[u8]) -> io::Result<Content> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let (header, body) = bytes.split_first_chunk::<8>().ok_or_else(|| damaged("it has no header"))?;
    if header[..7] != HEADER[..7] {
        return Err(damaged("it is no file of keys"));
    }
    if header[7] != HEADER[7] {
        return Err(damaged("it was written by a newer version"));
    }
    if !body.len().is_multiple_of(2 * ENTRY_BYTES) {
        return Err(damaged("it was cut short"));
    }
    let (first, second) = body.split_at(body.len() / 2);
    let mut content = Content::default();
    for (one, other) in first.as_chunks::<ENTRY_BYTES>().0.iter().zip(second.as_chunks::<ENTRY_BYTES>().0) {
        match read(one).or_else(|| read(other)) {
            Some(pending) => drop(content.keys.insert(pending.key.id(), pending)),
            None => content.damaged.push([RawEntry::new(*one), RawEntry::new(*other)]),
        }
    }
    Ok(content)
}

fn read(entry: &[u8; ENTRY_BYTES]) -> Option<Pending> {
    let (body, checksum) = entry.split_last_chunk::<CHECKSUM_BYTES>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (id, rest) = body.split_first_chunk::<ID_BYTES>()?;
    let (secret, rest) = rest.split_first_chunk::<SECRET_BYTES>()?;
    let (len, uid) = rest.split_first()?;
    let study_uid = std::str::from_utf8(uid.get(..usize::from(*len))?).ok()?.to_owned();
    Some(Pending { study_uid, key: Arc::new(StudyKey::new(KeyId(*id), *secret)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Content {
        let mut content = Content::default();
        for n in 1..=3_u8 {
            let key = Arc::new(StudyKey::new(KeyId([n; 16]), [n; 32]));
            content.keys.insert(key.id(), Pending { study_uid: format!("1.2.{n}"), key });
        }
        content
    }

    fn ids(content: &Content) -> Vec<u8> {
        content.keys.keys().map(|id| id.0[0]).collect()
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let hex: String = encode(&sample()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/pending-keys-v1.hex").trim());
    }

    #[test]
    fn any_flipped_bit_costs_no_key_and_two_in_both_copies_of_one_cost_that_one() {
        let bytes = encode(&sample());
        for bit in 8 * HEADER.len()..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let content = decode(&flipped).expect("decode");
            assert_eq!((ids(&content), content.damaged.len()), (vec![1, 2, 3], 0), "bit {bit}");
        }
        let mut both = bytes.to_vec();
        let second = HEADER.len() + ENTRY_BYTES;
        both[second + 20] ^= 1;
        both[second + 3 * ENTRY_BYTES + 50] ^= 1;
        let content = decode(&both).expect("decode");
        assert_eq!((ids(&content), content.damaged.len()), (vec![1, 3], 1));
        let again = decode(&encode(&content)).expect("decode again");
        assert_eq!((ids(&again), again.damaged.len()), (vec![1, 3], 1), "what is damaged is kept, as it is");
    }

    #[test]
    fn what_is_no_such_file_is_refused_rather_than_taken_for_an_empty_one() {
        let bytes = encode(&sample());
        for len in [0, 7, bytes.len() - 1, HEADER.len() + ENTRY_BYTES] {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut newer = bytes.to_vec();
        newer[7] += 1;
        assert!(decode(&newer).err().is_some_and(|error| error.to_string().contains("newer")));
        assert_eq!(ids(&decode(HEADER).expect("no keys")), [0_u8; 0]);
    }

    #[tokio::test]
    async fn what_was_added_is_there_after_a_restart_and_what_was_removed_is_in_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (disk, path) = (Disk::real(directory.path()), "pending-keys".to_owned());
        let file = PendingFile::open(disk.clone(), path.clone()).await.expect("open");
        let [one, two] = [1, 2].map(|n: u8| Arc::new(StudyKey::new(KeyId([n; 16]), [0x40 + n; 32])));
        file.add("1.2.3", &one).await.expect("add");
        let held = disk.open(&path).await.expect("the file as it is now");
        file.add("1.2.3", &two).await.expect("add");
        let old = held.read_at(0, 4096).await.expect("read");
        assert!(old.iter().all(|byte| *byte == 0), "what is replaced is overwritten");
        drop(file);
        let file = PendingFile::open(disk.clone(), path.clone()).await.expect("open");
        assert_eq!(file.of_study("1.2.3").len(), 2);
        assert_eq!(file.find(two.id()).as_deref(), Some(&*two));
        file.remove(&BTreeSet::from([one.id()])).await.expect("remove");
        assert_eq!(file.find(one.id()), None);
        let bytes = disk.read(&path).await.expect("read");
        assert!(!bytes.windows(32).any(|window| window == [0x41; 32]) && bytes.windows(32).any(|w| w == [0x42; 32]));
        assert_eq!(disk.list(".").await.expect("list"), [path]);
    }
}

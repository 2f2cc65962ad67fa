//! Purging: images that are to be gone are taken out of the index, then overwritten where they lie.
//!
//! ```text
//! plan (what does nothing else refer to?) ─ intent file, synced ─ index ─ persist ─ zeroes over the bytes, or
//! the whole pack removed ─ sync ─ intent file removed
//! ```
//! The writer plans and indexes, between two groups, so that no put can begin to rely on a piece in between.
//! The intent says which records are dead, by place. As long as it is there, an opening skips those records,
//! takes them out of the index once more and overwrites them again: at no moment can a crash bring back what
//! was purged, nor lose what was not.
//!
//! A purge is done when no byte of it is in any file. Its intent is gone then, unless a pack with records of it is
//! missing: its file may come back, from a copy or a directory that was not mounted. The intent then says of those
//! records that they are dead until they are overwritten or their pack is removed, and the pack's row stays as long.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use maillage_host::Disk;
use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::index::PackRow;
use crate::pack::{PackFiles, PackId};
use crate::store::is_want_of_room;

mod plan;
mod reclaim;
mod void;

pub(crate) use plan::{Step, apply, plan};
pub use reclaim::Reclaimed;
pub(crate) use void::remove_dropped;

/// Of intent files.
const VERSION: u8 = 1;
/// What intent files end with. Their names are numbers.
const SUFFIX: &str = ".purge";
/// Bytes of the checksum before an intent's content.
const CHECKSUM_LEN: usize = 32;

/// A publication of a study, as its manifest says: enough to know it and the earlier ones by, where the manifest
/// itself never came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Study Instance UID.
    pub study_uid: String,
    /// The site that published it.
    pub origin: u64,
    /// Its number.
    pub sequence: u64,
    /// Address of its manifest.
    pub manifest: Hash,
}

/// What the writer may be asked to take out of the index.
#[derive(Debug, Clone)]
pub(crate) enum PurgeWhat {
    /// A publication of a study, with all earlier ones of its origin, and what only they refer to.
    Study {
        /// Which.
        publication: Publication,
        /// Whether this is the node that published it: what it wrote down later was never published, and
        /// keeps nothing of it.
        own: bool,
    },
    /// A publication that is kept for the time being, with what only it refers to: nothing when it is held, and
    /// nothing of it that was received here.
    Kept(Hash),
    /// Pieces that no manifest refers to.
    Unreferenced(Arc<Vec<Hash>>),
}

/// Records that are dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// Why: the study manifest, or none for what nothing refers to.
    pub(crate) manifest: Option<Hash>,
    pub(crate) packs: Vec<DeadPack>,
    /// Manifests that refer to nothing any more.
    pub(crate) unlinked: Vec<Hash>,
}

/// The dead records of one pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeadPack {
    pub(crate) id: PackId,
    /// The pack's secret: a number may come again after the index was lost.
    pub(crate) salt: [u8; 8],
    /// In ascending order of their offsets.
    pub(crate) records: Vec<DeadRecord>,
}

/// A dead record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct DeadRecord {
    /// Of its header.
    pub(crate) offset: u64,
    /// Of its payload.
    pub(crate) len: u32,
    pub(crate) what: Dead,
}

/// Which row points at a dead record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Dead {
    /// A chunk or manifest.
    Piece(Hash),
    /// An instance of the library.
    Instance(String),
    /// A second data set under a SOP instance UID.
    Conflict(String, Hash),
    /// The hold on a study manifest.
    Hold(Hash),
    /// None: the record was written anew elsewhere.
    Superseded(Hash),
}

/// The intents that are on the disk.
#[derive(Debug, Default)]
pub(crate) struct Intents {
    /// By number.
    pending: Mutex<BTreeMap<u64, Arc<Intent>>>,
    /// Held over the overwriting, so that it happens once, and at the rate of one.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// Dead places of the packs, for an opening.
pub(crate) type DeadPlaces = BTreeMap<(PackId, [u8; 8]), BTreeMap<u64, u32>>;

impl Intents {
    /// Reads what is in the directory of packs. An intent that was not written to its end does not count: the
    /// index had not changed by then. One that is damaged is an error, since what it says can't be guessed.
    pub(crate) async fn read(disk: &Disk, directory: &str) -> io::Result<Self> {
        let mut pending = BTreeMap::new();
        for name in disk.list(directory).await? {
            if let Some(number) = name.strip_suffix(SUFFIX).and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
                let bytes = disk.read(&format!("{directory}/{name}")).await?;
                pending.insert(number, Arc::new(decode(&bytes)?));
            }
        }
        Ok(Self { pending: Mutex::new(pending), turn: tokio::sync::Mutex::default() })
    }

    /// Writes an intent down, durably.
    pub(crate) async fn write(&self, files: &PackFiles, intent: Intent) -> io::Result<Arc<Intent>> {
        let number = self.state().last_key_value().map_or(1, |(number, _)| number + 1);
        files.disk().replace(&path(files, number), encode(&intent)?).await?;
        let intent = Arc::new(intent);
        self.state().insert(number, Arc::clone(&intent));
        Ok(intent)
    }

    /// Keeps of an intent what is left of it, durably; nothing when it is carried out.
    pub(crate) async fn keep(&self, files: &PackFiles, number: u64, left: Vec<DeadPack>) -> io::Result<()> {
        if left.is_empty() {
            files.disk().remove(&path(files, number)).await?;
            files.disk().sync_dir(files.directory()).await?;
            self.state().remove(&number);
            return Ok(());
        }
        let Some(intent) = self.state().get(&number).cloned().filter(|intent| intent.packs != left) else {
            return Ok(());
        };
        let intent = Intent { packs: left, ..Intent::clone(&intent) };
        match files.disk().replace(&path(files, number), encode(&intent)?).await {
            Ok(()) => drop(self.state().insert(number, Arc::new(intent))),
            // A purge makes room; what stays in it for now is overwritten once more.
            Err(error) if is_want_of_room(&error) => tracing::warn!(%error, "an intent to purge was not shortened"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Keeps nothing of what is dead in a pack that was removed.
    pub(crate) async fn forget_pack(&self, files: &PackFiles, row: &PackRow) -> io::Result<()> {
        for (number, intent) in self.pending() {
            let left: Vec<DeadPack> =
                intent.packs.iter().filter(|pack| (pack.id, pack.salt) != (row.id, row.salt)).cloned().collect();
            if left.len() < intent.packs.len() {
                self.keep(files, number, left).await?;
            }
        }
        Ok(())
    }

    pub(crate) fn pending(&self) -> Vec<(u64, Arc<Intent>)> {
        self.state().iter().map(|(number, intent)| (*number, Arc::clone(intent))).collect()
    }

    /// All dead places, by pack.
    pub(crate) fn dead_places(&self) -> DeadPlaces {
        let mut places = DeadPlaces::new();
        for (_, intent) in self.pending() {
            for pack in &intent.packs {
                let of_pack = places.entry((pack.id, pack.salt)).or_default();
                of_pack.extend(pack.records.iter().map(|record| (record.offset, record.len)));
            }
        }
        places
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Intent>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intent {
    /// Groups dead records by their packs, of which `salts` knows the secrets.
    fn new(
        manifest: Option<Hash>,
        dead: BTreeMap<PackId, BTreeSet<DeadRecord>>,
        unlinked: BTreeSet<Hash>,
        salts: &BTreeMap<PackId, [u8; 8]>,
    ) -> Self {
        let packs = dead.into_iter().filter_map(|(id, records)| {
            Some(DeadPack { id, salt: *salts.get(&id)?, records: records.into_iter().collect() })
        });
        Self { manifest, packs: packs.collect(), unlinked: unlinked.into_iter().collect() }
    }
}

fn path(files: &PackFiles, number: u64) -> String {
    format!("{}/{number:016x}{SUFFIX}", files.directory())
}

fn encode(intent: &Intent) -> io::Result<Bytes> {
    let body = postcard::to_extend(intent, vec![VERSION]).map_err(io::Error::other)?;
    Ok([&Hash::of(&body).0[..], &body].concat().into())
}

fn decode(bytes: &[u8]) -> io::Result<Intent> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "an intent to purge is damaged");
    let (checksum, body) = bytes.split_at_checked(CHECKSUM_LEN).ok_or_else(damaged)?;
    let (version, content) = body.split_first().ok_or_else(damaged)?;
    if Hash::of(body).0 != *checksum || *version != VERSION {
        return Err(damaged());
    }
    postcard::from_bytes(content).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_reads_back_and_one_flipped_bit_is_noticed() {
        let record = DeadRecord { offset: 4096, len: 7, what: Dead::Conflict("1.2".into(), Hash([3; 32])) };
        let pack = DeadPack { id: PackId { number: 7, generation: 0 }, salt: *b"saltsalt", records: vec![record] };
        let intent = Intent { manifest: Some(Hash([1; 32])), packs: vec![pack], unlinked: vec![Hash([2; 32])] };
        let bytes = encode(&intent).expect("encode");
        assert_eq!(decode(&bytes).expect("decode"), intent);
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(decode(&[]).is_err());
    }
}

//! What is here only because it is likely to be read here, and may be dropped: a small file, durable before the first
//! byte of what it names is here.
//!
//! `[version]`, the BLAKE3 of the rest, postcard. One that is damaged is set aside, and what it named stays until its
//! images are purged: what cannot be known to be no copy is never dropped.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{Disk, UnixMillis};
use maillage_store::Hash;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::checked;

/// The file, and where a damaged one goes.
const FILE: &str = "prefetched";
const DAMAGED: &str = "prefetched.damaged";
/// What the file begins with: nothing.
const MAGIC: &[u8] = b"";
/// Of the file.
const VERSION: u8 = 1;

/// The note could not be made or ended durably.
#[derive(Debug, Clone, thiserror::Error)]
#[error("note what is prefetched: {0}")]
pub(crate) struct LedgerError(Arc<io::Error>);

/// A part that was prefetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Its Study Instance UID.
    pub(crate) study: String,
    /// Since when, in ms since 1970.
    pub(crate) at: u64,
}

/// The notes, by the study manifest of each part. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    disk: Disk,
    /// As they are on the disk. Held over a write, so that writes are one after another.
    notes: Mutex<BTreeMap<Hash, Note>>,
}

impl Ledger {
    /// What the disk remembers.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn open(disk: Disk) -> io::Result<Self> {
        let notes = match disk.read(FILE).await {
            Ok(bytes) => match decode(&bytes) {
                Some(notes) => notes,
                None => {
                    tracing::error!("the list of what is prefetched is damaged: it stays until it is purged");
                    disk.rename(FILE, DAMAGED).await?;
                    BTreeMap::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self(Arc::new(Shared { disk, notes: Mutex::new(notes) })))
    }

    /// All of them.
    pub(crate) async fn all(&self) -> BTreeMap<Hash, Note> {
        self.0.notes.lock().await.clone()
    }

    /// Whether a part is noted.
    pub(crate) async fn has(&self, manifest: Hash) -> bool {
        self.0.notes.lock().await.contains_key(&manifest)
    }

    /// Notes a part. When this returns, that is durable.
    ///
    /// # Errors
    /// [`LedgerError`]; it may be noted or not then.
    pub(crate) async fn enter(&self, manifest: Hash, study: &str, at: UnixMillis) -> Result<(), LedgerError> {
        let mut notes = self.0.notes.lock().await;
        notes.insert(manifest, Note { study: study.to_owned(), at: at.0 });
        self.write(&notes).await
    }

    /// Ends the notes of these parts: from now on none of them is dropped. Durable when this returns.
    ///
    /// # Errors
    /// [`LedgerError`]; the notes stay as they were.
    pub(crate) async fn leave(&self, manifests: &[Hash]) -> Result<(), LedgerError> {
        let mut notes = self.0.notes.lock().await;
        if !manifests.iter().any(|manifest| notes.contains_key(manifest)) {
            return Ok(());
        }
        let mut fewer = notes.clone();
        manifests.iter().for_each(|manifest| drop(fewer.remove(manifest)));
        self.write(&fewer).await?;
        *notes = fewer;
        Ok(())
    }

    async fn write(&self, notes: &BTreeMap<Hash, Note>) -> Result<(), LedgerError> {
        let encoded = encode(notes).map_err(|error| LedgerError(Arc::new(error)))?;
        self.0.disk.replace(FILE, encoded).await.map_err(|error| LedgerError(Arc::new(error)))
    }
}

fn encode(notes: &BTreeMap<Hash, Note>) -> io::Result<Bytes> {
    let listed: Vec<([u8; 32], &Note)> = notes.iter().map(|(manifest, note)| (manifest.0, note)).collect();
    checked::encode(MAGIC, VERSION, &listed).map_err(io::Error::other)
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<Hash, Note>> {
    let listed: Vec<([u8; 32], Note)> = checked::decode(MAGIC, VERSION, bytes).ok()?;
    Some(listed.into_iter().map(|(manifest, note)| (Hash(manifest), note)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(study: &str) -> Note {
        Note { study: study.to_owned(), at: 1_700_000_000_000 }
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change_and_one_flipped_bit_is_noticed() {
        let notes = BTreeMap::from([(Hash([7; 32]), note("1.2"))]);
        let bytes = encode(&notes).expect("encode");
        let body: String = bytes[33..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((bytes[0], body.as_str()), (1, &*format!("01{}03312e3280d095ffbc31", "07".repeat(32))));
        assert_eq!(decode(&bytes), Some(notes));
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
        assert_eq!(decode(&[]), None);
    }

    #[tokio::test]
    async fn notes_outlast_the_process_and_a_damaged_file_drops_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Disk::real(directory.path());
        let ledger = Ledger::open(disk.clone()).await.expect("open");
        for n in 1..=3 {
            ledger.enter(Hash([n; 32]), &format!("1.{n}"), UnixMillis(5)).await.expect("enter");
        }
        ledger.leave(&[Hash([2; 32]), Hash([9; 32])]).await.expect("leave");
        let again = Ledger::open(disk.clone()).await.expect("open");
        assert_eq!(again.all().await, ledger.all().await);
        assert_eq!(again.all().await.into_keys().collect::<Vec<_>>(), [Hash([1; 32]), Hash([3; 32])]);
        let mut bytes = disk.read(FILE).await.expect("read").to_vec();
        bytes[40] ^= 1;
        disk.replace(FILE, bytes.into()).await.expect("spoil");
        assert_eq!(Ledger::open(disk.clone()).await.expect("open").all().await, BTreeMap::new());
        assert!(disk.read(DAMAGED).await.is_ok(), "it is set aside");
    }
}

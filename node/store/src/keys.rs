//! The keys of studies: which one seals what comes now, and where those are found that sealed what is here.
//!
//! A key is made for the first instance after a publication of its study, and is durable in the file of pending
//! keys before that instance is acknowledged. A publication first rotates the key: what comes later is sealed
//! under another one, so that no purge of what was published destroys what was not. When the mesh has the key,
//! it leaves the file, and lives in the replicated state alone. So a copy of the packs never holds a key, and
//! the state forgets one once, for all copies.
//!
//! Nothing is cached: a key that the state has destroyed opens nothing from that moment on, even if the file
//! still has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use maillage_host::Disk;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

mod file;

use file::PendingFile;

use crate::error::{OpenError, StoreError};
use crate::manifest::InstanceManifest;
use crate::seal::{KeyId, SECRET_BYTES, StudyKey};

/// Studies whose turn is remembered without need: those that receive now are few.
const TURNS_REMEMBERED: usize = 256;

/// What the mesh has of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SharedKey {
    /// Its bytes.
    Kept([u8; SECRET_BYTES]),
    /// It was destroyed, for good.
    Destroyed,
    /// Nothing, yet.
    Unknown,
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept(_) => "Kept(…)",
            Self::Destroyed => "Destroyed",
            Self::Unknown => "Unknown",
        })
    }
}

/// The keys that the mesh keeps.
pub trait SharedKeys: Send + Sync + 'static {
    /// What the mesh has of the key, as far as this node knows.
    ///
    /// # Errors
    /// When the node's copy of the state cannot be read.
    fn find(&self, id: KeyId) -> io::Result<SharedKey>;
}

/// The keys of a store. Clones share them.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    file: PendingFile,
    shared: OnceLock<Arc<dyn SharedKeys>>,
    turns: Mutex<BTreeMap<String, Turn>>,
}

/// The key that seals what comes of a study now. Whoever seals holds it for reading until what is sealed is
/// durable; whoever makes or rotates it, for writing.
type Turn = Arc<OfStudy>;

#[derive(Debug, Default)]
struct OfStudy {
    current: Arc<RwLock<Option<Arc<StudyKey>>>>,
    /// Held for reading for what earlier keys have sealed and no list names yet: other instances may be sealed
    /// meanwhile.
    earlier: Arc<RwLock<()>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("pending", &self.0.file.len()).finish_non_exhaustive()
    }
}

/// A key that seals an instance: it is not rotated while this lives, so keep it until the instance is durable.
#[derive(Debug)]
pub struct Sealing(OwnedRwLockReadGuard<Option<Arc<StudyKey>>, Arc<StudyKey>>);

impl Sealing {
    /// The key.
    pub fn key(&self) -> &Arc<StudyKey> {
        &self.0
    }

    /// The key apart from what keeps it from being rotated.
    pub fn into_parts(self) -> (Arc<StudyKey>, InUse) {
        let key = Arc::clone(&self.0);
        (key, InUse { _sealing: Some(self), _earlier: None })
    }
}

/// Keys of a study under which something is sealed that no list names yet: none of them is rotated, nor
/// forgotten, while this lives.
#[derive(Debug)]
pub struct InUse {
    _sealing: Option<Sealing>,
    /// With the turn, which is not forgotten meanwhile.
    _earlier: Option<(OwnedRwLockReadGuard<()>, Turn)>,
}

impl Keys {
    pub(crate) async fn open(disk: Disk, path: String) -> Result<Self, OpenError> {
        let file = PendingFile::open(disk, path).await.map_err(OpenError::Keys)?;
        if file.damaged() > 0 {
            tracing::error!(
                entries = file.damaged(),
                "keys of images that the mesh does not know yet are damaged: restore the file of pending keys"
            );
        }
        Ok(Self(Arc::new(Inner { file, shared: OnceLock::new(), turns: Mutex::default() })))
    }

    /// Looks into the keys of the mesh from now on. The first call counts.
    pub fn share(&self, shared: Arc<dyn SharedKeys>) {
        let _ = self.0.shared.set(shared);
    }

    /// A key by its name: the mesh's word counts before that of the file.
    ///
    /// # Errors
    /// [`StoreError::KeyDestroyed`]; [`StoreError::KeyUnknown`] when neither has it; [`StoreError::Keys`].
    pub fn find(&self, id: KeyId) -> Result<Arc<StudyKey>, StoreError> {
        let shared = match self.0.shared.get() {
            Some(shared) => shared.find(id).map_err(|error| StoreError::Keys(Arc::new(error)))?,
            None => SharedKey::Unknown,
        };
        match shared {
            SharedKey::Kept(secret) => Ok(Arc::new(StudyKey::new(id, secret))),
            SharedKey::Destroyed => Err(StoreError::KeyDestroyed(id)),
            SharedKey::Unknown => {
                let damaged = self.0.file.damaged();
                self.0.file.find(id).ok_or(StoreError::KeyUnknown { id, damaged })
            }
        }
    }

    /// The key under which an instance is sealed; none when it is not.
    ///
    /// # Errors
    /// As [`Keys::find`].
    pub fn of(&self, manifest: &InstanceManifest) -> Result<Option<Arc<StudyKey>>, StoreError> {
        manifest.key.map(|id| self.find(id)).transpose()
    }

    /// The key that seals what comes of a study now, durable here.
    ///
    /// # Errors
    /// [`StoreError::Keys`] when a new one could not be written.
    pub async fn sealing(&self, study_uid: &str) -> Result<Sealing, StoreError> {
        loop {
            let turn = self.turn(study_uid);
            let read = Arc::clone(&turn.current).read_owned().await;
            if let Ok(key) = OwnedRwLockReadGuard::try_map(read, Option::as_ref) {
                return Ok(Sealing(key));
            }
            let mut current = turn.current.write().await;
            if current.is_none() {
                let key = Arc::new(StudyKey::random());
                self.0.file.add(study_uid, &key).await.map_err(|error| StoreError::Keys(Arc::new(error)))?;
                *current = Some(key);
            }
        }
    }

    /// Keeps the keys of a study from being rotated.
    pub(crate) async fn in_use(&self, study_uid: &str) -> InUse {
        let turn = self.turn(study_uid);
        let earlier = Arc::clone(&turn.earlier).read_owned().await;
        InUse { _sealing: None, _earlier: Some((earlier, turn)) }
    }

    /// Has what comes of a study from now on sealed under another key; waits for what is being sealed under the
    /// last one. Returns the pending keys of the study, which seal nothing new any more.
    pub async fn rotate(&self, study_uid: &str) -> Vec<Arc<StudyKey>> {
        let turn = self.turn(study_uid);
        let _earlier = turn.earlier.write().await;
        let mut current = turn.current.write().await;
        *current = None;
        self.0.file.of_study(study_uid)
    }

    /// The pending keys of a study, whether they seal something new or not.
    pub fn pending(&self, study_uid: &str) -> BTreeSet<KeyId> {
        self.0.file.of_study(study_uid).iter().map(|key| key.id()).collect()
    }

    /// Studies of which keys are pending: images that the mesh does not know yet.
    pub fn pending_studies(&self) -> BTreeSet<String> {
        self.0.file.studies()
    }

    /// Takes keys out of the file, for good: the mesh has them, or nothing is sealed under them.
    ///
    /// # Errors
    /// [`StoreError::Keys`].
    pub async fn forget(&self, ids: &BTreeSet<KeyId>) -> Result<(), StoreError> {
        self.0.file.remove(ids).await.map_err(|error| StoreError::Keys(Arc::new(error)))
    }

    /// Whether no key is made any more, after a failed write.
    pub(crate) fn is_failed(&self) -> bool {
        self.0.file.is_failed()
    }

    fn turn(&self, study_uid: &str) -> Turn {
        let mut turns = self.turns();
        if turns.len() >= TURNS_REMEMBERED {
            // One that nobody else has, and that seals nothing, is as good as a new one.
            turns.retain(|_, turn| {
                Arc::strong_count(turn) > 1 || turn.current.try_read().is_ok_and(|key| key.is_some())
            });
        }
        Arc::clone(turns.entry(study_uid.to_owned()).or_default())
    }

    fn turns(&self) -> MutexGuard<'_, BTreeMap<String, Turn>> {
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

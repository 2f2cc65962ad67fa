//! What can go wrong in a store, by operation. No text here carries anything of a patient.

use std::io;
use std::sync::Arc;

use crate::hash::Hash;
use crate::manifest::ManifestError;
use crate::seal::{KeyId, SealError};

/// Why an operation of an open store did not happen. Cheap to clone: one failed write answers every
/// put of its group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A write or fsync failed earlier. Nothing is written any more until the store is opened
    /// again; reads go on. A failed fsync is never tried again: the kernel may report success for
    /// pages that it has dropped.
    #[error("write: the store stopped writing after {0}")]
    Failed(Arc<str>),
    /// The index is damaged, and being made anew from the packs. Nothing is written meanwhile; works again then.
    #[error("write: the index was found damaged and is being made anew")]
    Mending,
    /// There is no room (or only the reserve); works again when there is.
    #[error("write: {free} bytes are free and {reserve} are kept in reserve")]
    Full {
        /// Bytes free on the volume.
        free: u64,
        /// Bytes that the configuration keeps.
        reserve: u64,
    },
    /// The store was closed.
    #[error("write: the store is closed")]
    Closed,
    /// The stored bytes are not what their address says, or could not be read from the medium. They
    /// are quarantined and must be fetched from another node.
    #[error("read {0}: the stored bytes are damaged")]
    Corrupt(Hash),
    /// A piece that the operation needs is not here.
    #[error("read {0}: not stored here")]
    Missing(Hash),
    /// The stored bytes are what their address says, and not what the instance's manifest says of them.
    #[error("read {0}: the chunk is not in the form that its manifest says")]
    Contradictory(Hash),
    /// The key under which it is sealed was destroyed: nobody can read it any more, and nobody is to.
    #[error("the key of these images was destroyed (key {0})")]
    KeyDestroyed(KeyId),
    /// The key under which it is sealed is not here, or not yet.
    #[error(
        "the key of these images is not known here (key {id}; {damaged} damaged entries in the file of pending keys)"
    )]
    KeyUnknown {
        /// Which.
        id: KeyId,
        /// Entries of the file of pending keys that cannot be read.
        damaged: usize,
    },
    /// Keys could not be read or written.
    #[error("use the keys: {0}")]
    Keys(Arc<io::Error>),
    /// The attributes of an instance are not what its manifest says.
    #[error("open the attributes of an instance: {0}")]
    Attributes(SealError),
    /// Something of the study has landed and is still to be coded.
    #[error("what has landed of the study is still to be coded")]
    Landed,
    /// The operation makes no sense as asked.
    #[error("write: {0}")]
    Refused(#[from] Refusal),
    /// A stored manifest does not decode, though its bytes are right: written by a newer version.
    #[error("decode manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// The index could not be read or written. If that is because it is damaged, it is made anew from the packs.
    #[error("use the index: {0}")]
    Index(Arc<io::Error>),
    /// A pack could not be read for a reason other than damage.
    #[error("read a pack: {0}")]
    Read(Arc<io::Error>),
    /// The volume could not be asked for its free space.
    #[error("ask the volume for its space: {0}")]
    Space(Arc<io::Error>),
}

/// Why a put makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A chunk beyond the limit, or empty.
    #[error("a chunk has between 1 and 1048576 bytes")]
    ChunkSize,
    /// The manifest does not describe the pieces that came with it.
    #[error("the manifest does not match the cut data set")]
    ManifestMismatch,
    /// The manifest breaks one of its own rules.
    #[error("the manifest is not valid: {0}")]
    Manifest(ManifestError),
    /// The commit names a manifest that is neither stored nor in the group.
    #[error("the committed manifest is not stored")]
    ManifestAbsent,
    /// The source is too long to be an application entity's title.
    #[error("the source has more than 64 bytes")]
    Source,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory of packs could not be used.
    #[error("use the directory of packs: {0}")]
    Directory(#[source] io::Error),
    /// The index could be neither opened nor made anew.
    #[error("open the index: {0}")]
    Index(#[source] io::Error),
    /// What is being purged could not be read: nothing is opened, or it might come back.
    #[error("read what is being purged: {0}")]
    Intent(#[source] io::Error),
    /// The file of pending keys could not be read: images that were acknowledged could not be opened.
    #[error("read the pending keys: {0}")]
    Keys(#[source] io::Error),
    /// A pack, or a file of the landing, could not be read or repaired.
    #[error("replay pack {pack}: {error}")]
    Pack {
        /// Its file name.
        pack: String,
        /// What happened.
        #[source]
        error: io::Error,
    },
    /// A pack was written by a newer version of this software.
    #[error("replay pack {pack}: written by a newer version")]
    Version {
        /// Its file name.
        pack: String,
    },
}

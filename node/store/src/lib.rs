//! The images of a node: chunks, manifests, and the pack files that hold them durably.
//!
//! Everything is addressed by its BLAKE3 hash and verified by it at every read; nothing is
//! acknowledged before the fsync behind it. The packs are the truth; the index (in an embedded
//! engine that may lag behind them after a crash) is completed from them when a store opens, and made
//! anew from them once it is found damaged. This crate knows no network, no queue and no DICOM: a data set is bytes
//! with one offset to cut at, and perhaps rows of samples behind it, which are then stored by `maillage_codec`. What
//! is sealed is opened by a key of its study; everything else here, addresses, copies and verification, is of the
//! sealed bytes and needs none.
//!
//! ```text
//! put ─ queue (bounded in bytes) ─ writer task ─ pack file ─ fsync ─ index batch ─ acknowledgement
//! get ─ index ─ pack file ─ BLAKE3 ─ bytes, or quarantine and an event
//! land ─ landing ─ fsync ─ acknowledgement; cut and coded later, and put
//! purge ─ writer task ─ intent file ─ index ─ zeroes over the bytes, or the pack removed
//! ```

mod chunk;
mod config;
mod cut;
mod error;
mod event;
mod hash;
mod index;
mod keys;
mod landing;
mod library;
mod manifest;
mod mend;
mod pack;
mod proof;
mod purge;
mod recovery;
mod replay;
mod scrub;
mod seal;
mod store;
mod verify;
mod writer;

pub use chunk::{CHUNK_BYTES_MAX, Chunk, WrongHash};
pub use config::StoreConfig;
pub use cut::{CutInstance, Cutting, Piece, PixelPart, cut};
pub use error::{OpenError, Refusal, StoreError};
pub use event::StoreEvent;
pub use hash::{Hash, HashParseError};
pub use keys::{InUse, Keys, Sealing, SharedKey, SharedKeys};
pub use landing::{Arrived, ArrivedError, Claimed, HeldOff, LANDED_BYTES_MAX, Landed, Landing};
pub use library::{Conflict, HeldStudy, Instance, InstanceCommit, Stored, StudySeen, StudySummary};
pub use manifest::{
    ChunkEntry, Form, FormError, INSTANCE_MANIFEST_BYTES_MAX, InstanceEntry, InstanceIdentity, InstanceManifest,
    ManifestError, ManifestFlags, STUDY_MANIFEST_BYTES_MAX, StudyManifest,
};
pub use pack::PackId;
pub use proof::Proof;
pub use purge::{Publication, Reclaimed};
pub use recovery::{Damage, Recovery, TornTail};
pub use scrub::{ScrubPosition, Scrubbed};
pub use seal::{KeyId, SEAL_BYTES, SECRET_BYTES, SealError, StudyKey};
pub use store::{PutGroup, Stats, Store};
pub use verify::{Hold, VerifyReport};

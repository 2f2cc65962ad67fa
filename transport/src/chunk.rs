//! Chunks and manifests by their BLAKE3 hash, over `mesh-chunk/1`.
//!
//! One request, one bidirectional stream: the asker writes a request and ends its side; the holder
//! answers a header and the bytes. The asker hashes what came, as one buffer (hashing packet-sized
//! pieces costs 0.9 CPU-seconds a GiB more), and hands it out only if it is what was asked for.
//!
//! A holder admits each answer before it reads or writes anything: once bytes lie in the send buffer, no priority
//! brings urgent ones past them. It looks at all its connections together, since they share its line. An asker
//! whose request is still waiting may raise its class by another byte.

use std::io;

use blake3::Hash;
use bytes::Bytes;
use futures::future::BoxFuture;

mod get;
mod places;
mod serve;
#[cfg(test)]
mod tests;
mod turns;
mod wire;

pub use get::{GetError, get, get_while, verify};
pub use places::Limits;
pub use serve::serve;
pub(crate) use turns::Turns;

/// The longest chunk, in bytes.
pub const CHUNK_LEN_MAX: usize = 1 << 20;

/// The longest object that travels, in bytes: a manifest of a study of two million chunks.
pub const OBJECT_LEN_MAX: usize = 64 << 20;

/// Bytes that one asker keeps in flight towards one holder for its readers; more gain nothing on loopback or at
/// 1 Gb/s over 40 ms.
pub const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;

/// Requests that one asker keeps in flight towards one holder for its readers: half the streams that a connection has.
/// Manifests and heads are small, and eight of them in a round trip of 50 ms would be 160 a second.
pub const IN_FLIGHT_MAX: usize = 128;

/// What an object is wanted for, the highest first: a lower class never slows a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits for it.
    Reader,
    /// It is likely to be read here soon.
    Prefetch,
    /// A copy that nobody waits for.
    Copy,
    /// What was lost or damaged at a holder is brought back.
    Repair,
}

impl Class {
    /// All, the highest first.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Prefetch, Self::Copy, Self::Repair];

    /// Its place in [`Class::ALL`].
    pub const fn rank(self) -> usize {
        self as usize
    }

    /// Its name, as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Prefetch => "prefetch",
            Self::Copy => "copy",
            Self::Repair => "repair",
        }
    }
}

/// Where a node's own objects come from.
pub trait ChunkSource: Send + Sync + 'static {
    /// The bytes of this hash; `None` when the node does not hold them.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being read. The asker is told to try elsewhere, not why.
    fn read(&self, hash: Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>>;
}

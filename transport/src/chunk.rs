//! Chunks and manifests by their BLAKE3 hash, over `mesh-chunk/1`.
//!
//! One request, one bidirectional stream: the asker writes a request and ends its side; the holder
//! answers a header and the bytes. The asker hashes what came, as one buffer (hashing packet-sized
//! pieces costs 0.9 CPU-seconds a GiB more), and hands it out only if it is what was asked for.
//!
//! A holder admits each answer by semaphore before it reads or writes anything: once bytes lie in the
//! send buffer, no priority brings urgent ones past them.

use std::io;

use blake3::Hash;
use bytes::Bytes;
use futures::future::BoxFuture;

mod get;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

pub use get::{GetError, get, verify};
pub use serve::{Limits, serve};

/// The longest chunk, in bytes.
pub const CHUNK_LEN_MAX: usize = 1 << 20;

/// The longest object that travels, in bytes: a manifest of a study of two million chunks.
pub const OBJECT_LEN_MAX: usize = 64 << 20;

/// Requests that one asker keeps in flight towards one holder; more gain nothing on loopback or at
/// 1 Gb/s over 40 ms.
pub const IN_FLIGHT_MAX: usize = 8;

/// What an object is wanted for. Urgent requests are answered first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits for it.
    Urgent,
    /// A copy that nobody waits for.
    Background,
}

/// Where a node's own objects come from.
pub trait ChunkSource: Send + Sync + 'static {
    /// The bytes of this hash; `None` when the node does not hold them.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being read. The asker is told to try elsewhere, not why.
    fn read(&self, hash: Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>>;
}

//! That what is read of an instance is the data set that was received: its pieces are hashed as they pass.
//!
//! Each chunk was compared with its address before; the hash of the whole also covers the decoding and a
//! manifest that lists right chunks in a wrong order. The last piece waits for it, so that nobody takes a
//! data set for whole that is not.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use maillage_host::offload;

use crate::error::StoreError;
use crate::hash::Hash;
use crate::manifest::InstanceManifest;

/// What the pieces of an instance must add up to.
#[derive(Debug)]
pub struct Proof {
    pieces_left: usize,
    expected: Hash,
    /// None when there is nothing to prove: raw chunks have been compared with their addresses, which are of
    /// the data set's own bytes.
    hasher: Option<blake3::Hasher>,
}

impl Proof {
    /// The proof for this instance's pieces.
    pub fn of(manifest: &InstanceManifest) -> Self {
        let hasher = (manifest.is_coded() || manifest.key.is_some()).then(blake3::Hasher::new);
        Self { pieces_left: manifest.chunks.len(), expected: manifest.dataset_hash, hasher }
    }

    /// Passes the pieces of a data set on, up to the first error or the last piece. The last one becomes an
    /// error when they do not add up.
    pub fn check<E: From<StoreError> + Send>(
        self,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> impl Stream<Item = Result<Bytes, E>> + Send {
        stream::unfold((Some(self), Box::pin(pieces)), |(proof, mut pieces)| async move {
            let mut proof = proof?;
            let checked = match pieces.next().await? {
                Ok(piece) => proof.passes(piece).await.map_err(E::from),
                Err(error) => Err(error),
            };
            let goes_on = checked.is_ok().then_some(proof);
            Some((checked, (goes_on, pieces)))
        })
    }

    async fn passes(&mut self, piece: Bytes) -> Result<Bytes, StoreError> {
        self.pieces_left = self.pieces_left.saturating_sub(1);
        let Some(mut hasher) = self.hasher.take() else { return Ok(piece) };
        let hashed = offload(move || {
            hasher.update(&piece);
            Ok((hasher, piece))
        });
        let (hasher, piece) = hashed.await.map_err(|error| StoreError::Read(Arc::new(error)))?;
        if self.pieces_left == 0 && *hasher.finalize().as_bytes() != self.expected.0 {
            return Err(StoreError::Contradictory(self.expected));
        }
        self.hasher = Some(hasher);
        Ok(piece)
    }
}

//! How far the index must be, and whether it can be opened, in a file beside the packs.
//!
//! What a purge or the removal of a pack did is in the index and, once the bytes are gone, nowhere else: an index
//! that falls behind it would list what is no longer there. The mark says which batch it must have at least; one
//! that has not is made anew. No index is as far as a condemned one would have to be.
//!
//! A flipped bit can also have the engine ask for more memory than there is, which ends the process: openings are
//! counted until one has come to its end.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{Disk, offload};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::Index;
use crate::hash::Hash;
use crate::store::{is_damage, is_want_of_room};

/// The file's name.
const NAME: &str = "index-mark";
const VERSION: u8 = 1;
/// Bytes of the checksum before the content.
const CHECKSUM_LEN: usize = 32;
/// Of an index that was found damaged.
const CONDEMNED: u64 = u64::MAX;
/// Openings that may end on the way, for other reasons than the index: somebody kills the node, the power is cut.
const OPENINGS_MAX: u32 = 3;

/// The mark, as it is on the disk.
#[derive(Debug)]
pub(crate) struct Mark {
    disk: Disk,
    path: String,
    content: Mutex<Content>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// The number of the batch that the index must have; 0 without one.
    batch: u64,
    /// Openings of the index since the last that came to its end.
    openings: u32,
}

impl Mark {
    /// Reads it. Without a file nothing is asked of the index; one that can't be read or understood condemns it.
    pub(crate) async fn read(disk: Disk, prefix: &str) -> io::Result<Self> {
        let path = if prefix.is_empty() { NAME.to_owned() } else { format!("{prefix}/{NAME}") };
        let content = match disk.read(&path).await {
            Ok(bytes) => decode(&bytes).unwrap_or(Content { batch: CONDEMNED, openings: 0 }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) if is_damage(&error) => Content { batch: CONDEMNED, openings: 0 },
            Err(error) => return Err(error),
        };
        Ok(Self { disk, path, content: Mutex::new(content) })
    }

    /// Says that the index is about to be opened. The number of the batch that it must have; none if it is not even
    /// to be tried.
    pub(crate) async fn begin_opening(&self) -> Option<u64> {
        let mut content = self.content.lock().await;
        if content.batch == CONDEMNED || content.openings >= OPENINGS_MAX {
            return None;
        }
        let begun = Content { openings: content.openings + 1, ..*content };
        match self.write(begun).await {
            Ok(()) => *content = begun,
            Err(error) => tracing::warn!(%error, "that the index is being opened was not written down"),
        }
        Some(content.batch)
    }

    /// Says that the process has outlived the opening.
    pub(crate) async fn end_opening(&self) {
        let mut content = self.content.lock().await;
        let ended = Content { openings: 0, ..*content };
        match self.write(ended).await {
            Ok(()) => *content = ended,
            Err(error) => tracing::warn!(%error, "that the index is open was not written down"),
        }
    }

    /// Makes the index durable for good: one that is ever behind what it is now is not used.
    pub(crate) async fn persist(&self, index: &Arc<Index>) -> io::Result<()> {
        let persisted = Arc::clone(index);
        let last = offload(move || {
            let last = persisted.last_batch();
            persisted.persist().map(|()| last)
        });
        let batch = last.await?;
        let mut content = self.content.lock().await;
        if content.batch < batch {
            let raised = Content { batch, ..*content };
            match self.write(raised).await {
                Ok(()) => *content = raised,
                // A purge makes room; without the mark only damage that comes on top goes unnoticed.
                Err(error) if is_want_of_room(&error) => {
                    tracing::warn!(%error, "how far the index is was not written down");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has the next opening make the index anew.
    pub(crate) async fn condemn(&self) {
        let mut content = self.content.lock().await;
        if content.batch == CONDEMNED {
            return;
        }
        content.batch = CONDEMNED;
        if let Err(error) = self.write(*content).await {
            tracing::error!(%error, "that the index is damaged was not written down");
        }
    }

    /// Asks nothing of the index any more, which is a new one.
    pub(crate) async fn reset(&self) -> io::Result<()> {
        let mut content = self.content.lock().await;
        if *content != Content::default() {
            self.write(Content::default()).await?;
            *content = Content::default();
        }
        Ok(())
    }

    async fn write(&self, content: Content) -> io::Result<()> {
        self.disk.replace(&self.path, encode(content)?).await
    }
}

fn encode(content: Content) -> io::Result<Bytes> {
    let body = postcard::to_extend(&content, vec![VERSION]).map_err(io::Error::other)?;
    Ok([&Hash::of(&body).0[..], &body].concat().into())
}

fn decode(bytes: &[u8]) -> Option<Content> {
    let (checksum, body) = bytes.split_at_checked(CHECKSUM_LEN)?;
    let (version, content) = body.split_first()?;
    let is_whole = Hash::of(body).0 == *checksum && *version == VERSION;
    postcard::from_bytes(content).ok().filter(|_| is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_back_and_one_flipped_bit_is_noticed() {
        let content = Content { batch: 0x0102_0304_0506_0708, openings: 2 };
        let bytes = encode(content).expect("encode");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/index-mark-v1.hex").trim());
        assert_eq!(decode(&bytes), Some(content));
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
    }
}

//! Cutting a received data set into chunks.
//!
//! The head (what comes before PixelData) is cut apart from the pixels, so that worklists and
//! viewers read attributes without touching pixels. Slices are immutable once acquired: fixed sizes
//! do as well here as content-defined cutting.

use bytes::Bytes;

use crate::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::hash::Hash;

/// One data set as chunks, zero-copy slices of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutInstance {
    /// What comes before PixelData.
    pub head: Vec<Chunk>,
    /// PixelData and what follows.
    pub pixels: Vec<Chunk>,
    /// The hash of the whole data set.
    pub dataset_hash: Hash,
}

/// Cuts `dataset` at `pixel_offset` (the offset of the PixelData element, or the length when there
/// is none; beyond the end counts as the end) and every [`CHUNK_BYTES_MAX`] bytes. An empty part
/// gives no chunk. Hashes every byte twice (0.9 ms a MiB): call it away from the async threads.
pub fn cut(mut dataset: Bytes, pixel_offset: usize) -> CutInstance {
    let pixel_offset = pixel_offset.min(dataset.len());
    let whole = dataset.clone();
    let pixels = pieces(dataset.split_off(pixel_offset));
    let head = pieces(dataset);
    let dataset_hash = match (&head[..], &pixels[..]) {
        ([only], []) | ([], [only]) => only.hash(),
        _ => Hash::of(&whole),
    };
    CutInstance { head, pixels, dataset_hash }
}

impl CutInstance {
    /// All chunks in the order of the data set.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.head.iter().chain(&self.pixels)
    }

    /// Bytes of the head.
    pub fn head_len(&self) -> u64 {
        self.head.iter().map(|chunk| chunk.byte_len() as u64).sum()
    }

    /// Bytes of the whole data set.
    pub fn total_len(&self) -> u64 {
        self.chunks().map(|chunk| chunk.byte_len() as u64).sum()
    }
}

fn pieces(mut part: Bytes) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(part.len().div_ceil(CHUNK_BYTES_MAX));
    while !part.is_empty() {
        chunks.push(Chunk::new(part.split_to(part.len().min(CHUNK_BYTES_MAX))));
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_pixels_are_cut_apart_and_join_to_the_same_bytes() {
        let dataset: Bytes = (0..=250).cycle().take(3 * CHUNK_BYTES_MAX + 77).collect();
        for offset in [0, 1, 4_000, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, dataset.len(), usize::MAX] {
            let cut = cut(dataset.clone(), offset);
            let at = offset.min(dataset.len());
            let joined: Vec<u8> = cut.chunks().flat_map(|chunk| chunk.bytes().to_vec()).collect();
            assert_eq!(joined, dataset);
            assert_eq!(cut.head_len(), at as u64);
            assert_eq!(cut.head.len(), at.div_ceil(CHUNK_BYTES_MAX), "an empty part gives no chunk");
            assert_eq!(cut.pixels.len(), (dataset.len() - at).div_ceil(CHUNK_BYTES_MAX));
            assert_eq!(cut.dataset_hash, Hash::of(&dataset));
            assert!(cut.chunks().all(|chunk| Hash::of(chunk.bytes()) == chunk.hash()));
        }
        assert_eq!(cut(Bytes::new(), 0).chunks().count(), 0);
        assert_eq!(cut(Bytes::new(), 0).dataset_hash, Hash::of(b""));
    }

    #[test]
    fn chunks_are_slices_of_the_data_set() {
        let dataset = Bytes::from(vec![7; 5_000]);
        let cut = cut(dataset.clone(), 1_000);
        assert_eq!(cut.pixels[0].bytes().as_ptr(), dataset[1_000..].as_ptr());
    }
}

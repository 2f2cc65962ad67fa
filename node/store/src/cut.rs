//! Cutting a received data set into chunks.
//!
//! The head (what comes before PixelData) is cut apart from the pixels, so that worklists and
//! viewers read attributes without touching pixels. Slices are immutable once acquired: fixed sizes
//! do as well here as content-defined cutting.
//!
//! Uncompressed pixels are cut between rows and coded, each chunk apart from the others:
//! ```text
//! Cutting::new -> pieces -> Piece::code, each on its own thread if need be -> Cutting::finish
//! ```
//! What was coded is decoded again and compared before the raw bytes may go; what does not shrink stays
//! raw.

use bytes::Bytes;
use maillage_codec::Shape;

use crate::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::hash::Hash;
use crate::manifest::{ChunkEntry, Form};

/// One data set as chunks; raw ones are zero-copy slices of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutInstance {
    /// What comes before PixelData.
    pub head: Vec<Piece>,
    /// PixelData and what follows.
    pub pixels: Vec<Piece>,
    /// The hash of the whole data set.
    pub dataset_hash: Hash,
}

/// A chunk, and which bytes of the data set it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    chunk: Chunk,
    form: Form,
    raw_len: u32,
    /// Whether coding was tried and did not give the same bytes back.
    differed: bool,
}

/// The pixels of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelPart {
    /// Where the PixelData element begins; beyond the end counts as the end.
    pub offset: usize,
    /// Where the rows of its value begin and what they look like, when they are to be coded.
    pub rows: Option<(usize, Shape)>,
}

/// A data set that is being cut: what is left to do of it is to code its pieces.
#[derive(Debug, Clone)]
pub struct Cutting {
    whole: Bytes,
    head: Bytes,
    /// Bytes before the first row of the first piece of pixels.
    prefix: usize,
    shape: Option<Shape>,
    pixels: Vec<Bytes>,
}

/// Cuts `dataset` at `pixel_offset` (the offset of the PixelData element, or the length when there
/// is none; beyond the end counts as the end) and every [`CHUNK_BYTES_MAX`] bytes, and codes nothing. An
/// empty part gives no chunk. Hashes every byte twice (0.9 ms a MiB): call it away from the async threads.
pub fn cut(dataset: Bytes, pixel_offset: usize) -> CutInstance {
    let cutting = Cutting::new(dataset, PixelPart { offset: pixel_offset, rows: None });
    let pixels = cutting.pixels.iter().cloned().map(Piece::raw).collect();
    cutting.finish(pixels)
}

impl Cutting {
    /// Says where `dataset` is cut: between rows, if its pixels have rows, so that no piece is longer than
    /// [`CHUNK_BYTES_MAX`].
    pub fn new(dataset: Bytes, part: PixelPart) -> Self {
        let whole = dataset.clone();
        let offset = part.offset.min(dataset.len());
        let (head, rest) = (dataset.slice(..offset), dataset.slice(offset..));
        let rows = part.rows.and_then(|(at, shape)| {
            let prefix = at.checked_sub(offset).filter(|prefix| *prefix <= maillage_codec::PREFIX_LEN_MAX)?;
            let row_len = shape.row_len()?;
            let room = (CHUNK_BYTES_MAX - prefix) / row_len * row_len;
            (room > 0).then_some((prefix, room, shape))
        });
        let Some((prefix, room, shape)) = rows else {
            return Self { whole, head, prefix: 0, shape: None, pixels: split(rest, CHUNK_BYTES_MAX) };
        };
        let first = rest.slice(..rest.len().min(prefix + room));
        let mut pixels = split(rest.slice(first.len()..), room);
        pixels.insert(0, first);
        pixels.retain(|piece| !piece.is_empty());
        Self { whole, head, prefix, shape: Some(shape), pixels }
    }

    /// How many pieces there are to code: none when the pixels have no rows.
    pub fn to_code(&self) -> usize {
        if self.shape.is_some() { self.pixels.len() } else { 0 }
    }

    /// The work of piece `n`. It takes up to 8 ms.
    pub fn code(&self, n: usize) -> Option<Piece> {
        let raw = self.pixels.get(n)?.clone();
        let prefix = if n == 0 { self.prefix } else { 0 };
        Some(Piece::code(raw, prefix, self.shape?))
    }

    /// The cut data set, of its pieces in order; raw ones where they are missing. Hashes the data set.
    pub fn finish(self, mut pixels: Vec<Piece>) -> CutInstance {
        pixels.truncate(self.pixels.len());
        let missing = self.pixels.into_iter().skip(pixels.len()).map(Piece::raw);
        pixels.extend(missing);
        let head: Vec<Piece> = split(self.head, CHUNK_BYTES_MAX).into_iter().map(Piece::raw).collect();
        let dataset_hash = match (&head[..], &pixels[..]) {
            ([only], []) | ([], [only]) if only.form == Form::Raw => only.chunk.hash(),
            _ => Hash::of(&self.whole),
        };
        CutInstance { head, pixels, dataset_hash }
    }
}

impl Piece {
    fn raw(bytes: Bytes) -> Self {
        let raw_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { chunk: Chunk::new(bytes), form: Form::Raw, raw_len, differed: false }
    }

    fn code(raw: Bytes, prefix: usize, shape: Shape) -> Self {
        let Some(coded) = maillage_codec::encode(&raw, prefix, Some(shape)) else { return Self::raw(raw) };
        Self::proven(raw, coded)
    }

    /// The coded form, if it decodes to the same bytes; else the raw one.
    fn proven(raw: Bytes, coded: Vec<u8>) -> Self {
        if maillage_codec::decode(&coded, raw.len()).is_ok_and(|decoded| decoded == raw) {
            let raw_len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
            return Self { chunk: Chunk::new(coded.into()), form: Form::Coded, raw_len, differed: false };
        }
        Self { differed: true, ..Self::raw(raw) }
    }

    /// What is stored.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// As the manifest lists it.
    pub fn entry(&self) -> ChunkEntry {
        let len = u32::try_from(self.chunk.byte_len()).unwrap_or(u32::MAX);
        ChunkEntry { hash: self.chunk.hash(), len, form: self.form, raw_len: self.raw_len }
    }
}

impl CutInstance {
    /// All chunks in the order of the data set.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.pieces().map(|piece| &piece.chunk)
    }

    /// All chunks as a manifest lists them.
    pub fn entries(&self) -> impl Iterator<Item = ChunkEntry> {
        self.pieces().map(Piece::entry)
    }

    /// The chunks alone.
    pub fn into_chunks(self) -> Vec<Chunk> {
        self.head.into_iter().chain(self.pixels).map(|piece| piece.chunk).collect()
    }

    /// Pieces that did not decode to what they were coded from, and are therefore raw: a defect.
    pub fn differed(&self) -> usize {
        self.pieces().filter(|piece| piece.differed).count()
    }

    /// Bytes of the head.
    pub fn head_len(&self) -> u64 {
        self.head.iter().map(|piece| u64::from(piece.raw_len)).sum()
    }

    /// Bytes of the whole data set.
    pub fn total_len(&self) -> u64 {
        self.pieces().map(|piece| u64::from(piece.raw_len)).sum()
    }

    /// Bytes that are stored of it.
    pub fn stored_len(&self) -> u64 {
        self.chunks().map(|chunk| chunk.byte_len() as u64).sum()
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.head.iter().chain(&self.pixels)
    }
}

fn split(mut part: Bytes, len: usize) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(part.len().div_ceil(len));
    while !part.is_empty() {
        pieces.push(part.split_to(part.len().min(len)));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use maillage_codec::SampleWidth;

    use super::*;

    fn smooth(len: usize) -> Vec<u8> {
        let sample = |n: usize| u16::try_from(1000 + n % 700 / 7 + n / 700 % 50).expect("small");
        (0..len / 2).flat_map(|n| sample(n).to_le_bytes()).collect()
    }

    fn coded(dataset: &Bytes, part: PixelPart) -> CutInstance {
        let cutting = Cutting::new(dataset.clone(), part);
        let pieces = (0..cutting.to_code()).map(|n| cutting.code(n).expect("a piece")).collect();
        cutting.finish(pieces)
    }

    fn joined(cut: &CutInstance) -> Vec<u8> {
        let open = |piece: &Piece| piece.entry().open(piece.chunk.bytes().clone()).expect("opens").to_vec();
        cut.pieces().flat_map(open).collect()
    }

    #[test]
    fn head_and_pixels_are_cut_apart_and_join_to_the_same_bytes() {
        let dataset: Bytes = (0..=250).cycle().take(3 * CHUNK_BYTES_MAX + 77).collect();
        for offset in [0, 1, 4_000, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, dataset.len(), usize::MAX] {
            let cut = cut(dataset.clone(), offset);
            let at = offset.min(dataset.len());
            assert_eq!(joined(&cut), dataset);
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
        assert_eq!(cut.pixels[0].chunk.bytes().as_ptr(), dataset[1_000..].as_ptr());
    }

    #[test]
    fn coded_pieces_are_smaller_whole_rows_and_give_the_data_set_back() {
        let shape = Shape { width: SampleWidth::TwoLittle, components: 1, columns: 700, bits_stored: 12 };
        for pixels_len in [0, 12, 700, 5_000, 1_000_000, 3_500_000] {
            let dataset: Bytes = [vec![3; 4_001], vec![9; 12], smooth(pixels_len), vec![1; 33]].concat().into();
            let cut = coded(&dataset, PixelPart { offset: 4_001, rows: Some((4_013, shape)) });
            assert_eq!(joined(&cut), dataset);
            assert_eq!((cut.head_len(), cut.total_len()), (4_001, dataset.len() as u64));
            assert_eq!(cut.dataset_hash, Hash::of(&dataset));
            assert_eq!(cut.differed(), 0);
            if pixels_len >= 5_000 {
                assert!(cut.pixels.iter().all(|piece| piece.form == Form::Coded), "{pixels_len}");
                assert!(cut.stored_len() < 4_001 + pixels_len as u64 / 4);
            }
            let whole_rows = |piece: &Piece| piece.raw_len.is_multiple_of(1_400);
            assert!(cut.pixels.iter().rev().skip(1).rev().skip(1).all(whole_rows), "but for what is around them");
        }
    }

    #[test]
    fn what_does_not_shrink_and_what_decodes_to_something_else_stay_raw() {
        let shape = Shape { width: SampleWidth::One, components: 1, columns: 64, bits_stored: 8 };
        let mut noise = vec![0; 64_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let noise = Bytes::from(noise);
        let cut = coded(&noise, PixelPart { offset: 0, rows: Some((0, shape)) });
        assert_eq!((cut.pixels[0].form, cut.differed(), cut.stored_len()), (Form::Raw, 0, 64_000));
        let other = maillage_codec::encode(&[0; 1000], 0, Some(shape)).expect("shrinks");
        let piece = Piece::proven(Bytes::from(vec![1; 1000]), other);
        assert!(piece.differed && piece.form == Form::Raw);
        assert_eq!(piece.chunk.bytes(), &vec![1; 1000]);
    }

    #[test]
    fn a_place_or_shape_that_makes_no_sense_is_cut_as_if_there_were_no_rows() {
        let dataset = Bytes::from(vec![7; 5_000]);
        let shape = Shape { width: SampleWidth::One, components: 1, columns: 10, bits_stored: 8 };
        let rows = [
            (0, shape),
            (4_000, shape),
            (1_008, Shape { columns: 0, ..shape }),
            (1_008, Shape { components: 9, ..shape }),
        ];
        for rows in rows {
            let part = PixelPart { offset: 1_000, rows: Some(rows) };
            assert_eq!(coded(&dataset, part), cut(dataset.clone(), 1_000));
        }
    }
}

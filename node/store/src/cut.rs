//! Cutting a received data set into chunks.
//!
//! The head (what comes before PixelData) is cut apart from the pixels, so that worklists and
//! viewers read attributes without touching pixels. Slices are immutable once acquired: fixed sizes
//! do as well here as content-defined cutting.
//!
//! Uncompressed pixels are cut between rows and coded; with a key every chunk is sealed. Each is made apart
//! from the others:
//! ```text
//! Cutting::new -> Cutting::piece for each, each on its own thread if need be -> Cutting::finish
//!                 code ─ seal ─ hash
//!                 Cutting::is_proven for each: open, decode, compare
//! ```
//! What was coded must be proven before the raw bytes may go; what does not shrink, or fails, stays raw
//! ([`Cutting::raw_piece`]).

use std::sync::Arc;

use bytes::Bytes;
use maillage_codec::Shape;

use crate::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::hash::Hash;
use crate::manifest::{ChunkEntry, Form};
use crate::seal::{Place, SEAL_BYTES, SealError, StudyKey};

/// Rows that are coded are cut into pieces of about this many bytes, as equal as rows allow: a slice of 512 x 512
/// makes two, which two processors code side by side while its sender waits (`bench ingest`). Two
/// pieces are 0.3 % longer than one.
const CODED_PIECE_BYTES: usize = 384 << 10;

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
}

/// The pixels of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelPart {
    /// Where the PixelData element begins; beyond the end counts as the end.
    pub offset: usize,
    /// Where the rows of its value begin and what they look like, when they are to be coded.
    pub rows: Option<(usize, Shape)>,
}

/// A data set that is being cut: what is left to do of it is to make its pieces.
#[derive(Debug, Clone)]
pub struct Cutting {
    dataset_hash: Hash,
    head: Vec<Bytes>,
    /// Bytes before the first row of the first piece of pixels.
    prefix: usize,
    shape: Option<Shape>,
    pixels: Vec<Bytes>,
    key: Option<Arc<StudyKey>>,
}

/// Cuts `dataset` at `pixel_offset` (the offset of the PixelData element, or the length when there
/// is none; beyond the end counts as the end) and every [`CHUNK_BYTES_MAX`] bytes; codes and seals nothing. An
/// empty part gives no chunk. Hashes every byte twice (0.9 ms a MiB): call it away from the async threads.
pub fn cut(dataset: Bytes, pixel_offset: usize) -> CutInstance {
    let dataset_hash = Hash::of(&dataset);
    let cutting = Cutting::new(dataset, dataset_hash, PixelPart { offset: pixel_offset, rows: None }, None);
    let Cutting { head, pixels, .. } = cutting;
    let raw = |pieces: Vec<Bytes>| pieces.into_iter().map(Piece::raw).collect();
    CutInstance { head: raw(head), pixels: raw(pixels), dataset_hash }
}

impl Cutting {
    /// Says where `dataset`, whose hash is known, is cut: between rows, if its pixels have rows, and so that no
    /// piece is longer than [`CHUNK_BYTES_MAX`], sealed under `key` if there is one. Takes no time to speak of.
    pub fn new(dataset: Bytes, dataset_hash: Hash, part: PixelPart, key: Option<Arc<StudyKey>>) -> Self {
        let len_max = CHUNK_BYTES_MAX - if key.is_some() { SEAL_BYTES } else { 0 };
        let offset = part.offset.min(dataset.len());
        let head = split(dataset.slice(..offset), len_max);
        let rest = dataset.slice(offset..);
        let rows = part.rows.and_then(|(at, shape)| {
            let prefix = at.checked_sub(offset).filter(|prefix| *prefix <= maillage_codec::PREFIX_LEN_MAX)?;
            let row_len = shape.row_len()?;
            let rows_max = (len_max - prefix) / row_len;
            let rows = rest.len().saturating_sub(prefix) / row_len;
            let pieces = rest.len().div_ceil(CODED_PIECE_BYTES).max(1);
            (rows_max > 0).then(|| (prefix, rows.div_ceil(pieces).clamp(1, rows_max) * row_len, shape))
        });
        let Some((prefix, room, shape)) = rows else {
            return Self { dataset_hash, head, prefix: 0, shape: None, pixels: split(rest, len_max), key };
        };
        let first = rest.slice(..rest.len().min(prefix + room));
        let mut pixels = split(rest.slice(first.len()..), room);
        pixels.insert(0, first);
        pixels.retain(|piece| !piece.is_empty());
        // What follows the last row is none of its own.
        if let [.., before, last] = &pixels[..]
            && shape.row_len().is_some_and(|row_len| last.len() < row_len)
            && before.len() + last.len() <= len_max
        {
            let from = rest.len() - before.len() - last.len();
            pixels.truncate(pixels.len() - 2);
            pixels.push(rest.slice(from..));
        }
        Self { dataset_hash, head, prefix, shape: Some(shape), pixels, key }
    }

    /// How many pieces there are to make.
    pub fn pieces(&self) -> usize {
        self.head.len() + self.pixels.len()
    }

    /// Whether the pixels are coded.
    pub fn is_coding(&self) -> bool {
        self.shape.is_some() && !self.pixels.is_empty()
    }

    /// The first piece that is pixels, if there are any.
    pub fn first_of_pixels(&self) -> usize {
        self.head.len()
    }

    /// Bytes of the pixels, as they came.
    pub fn pixels_len(&self) -> u64 {
        self.pixels.iter().map(|piece| piece.len() as u64).sum()
    }

    /// The bytes of the data set that piece `n` stands for.
    fn raw(&self, n: usize) -> Option<&Bytes> {
        match n.checked_sub(self.head.len()) {
            None => self.head.get(n),
            Some(n) => self.pixels.get(n),
        }
    }

    /// Bytes of the data set that piece `n` stands for; none behind the last.
    pub fn raw_len(&self, n: usize) -> usize {
        self.raw(n).map_or(0, Bytes::len)
    }

    /// Makes piece `n`, in up to 2 ms; none behind the last. If it is coded it is still to be proven.
    ///
    /// # Errors
    /// [`SealError::Seal`]: nothing of the data set may be kept then.
    pub fn piece(&self, n: usize) -> Result<Option<Piece>, SealError> {
        let Some(raw) = self.raw(n) else { return Ok(None) };
        let shape = self.shape.filter(|_| n >= self.head.len());
        let prefix = if n == self.head.len() { self.prefix } else { 0 };
        let coded = shape.and_then(|shape| maillage_codec::encode(raw, prefix, Some(shape)));
        let (bytes, form) = coded.map_or((raw.clone(), Form::Raw), |coded| (coded.into(), Form::Coded));
        self.sealed(raw, bytes, form).map(Some)
    }

    /// Makes piece `n` without coding it; none behind the last.
    ///
    /// # Errors
    /// [`SealError::Seal`]: nothing of the data set may be kept then.
    pub fn raw_piece(&self, n: usize) -> Result<Option<Piece>, SealError> {
        let Some(raw) = self.raw(n) else { return Ok(None) };
        self.sealed(raw, raw.clone(), Form::Raw).map(Some)
    }

    fn sealed(&self, raw: &Bytes, bytes: Bytes, form: Form) -> Result<Piece, SealError> {
        let raw_len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        let Some(key) = &self.key else {
            let is_whole = form == Form::Raw && self.pieces() == 1;
            let chunk = if is_whole { Chunk::already_verified(self.dataset_hash, bytes) } else { Chunk::new(bytes) };
            return Ok(Piece { chunk, form, raw_len });
        };
        let sealed = key.seal(Place::Chunk { is_coded: form.is_coded(), raw_len }, &bytes)?;
        Ok(Piece { chunk: Chunk::new(sealed.into()), form: form.sealed(), raw_len })
    }

    /// Whether what is stored of piece `n` gives back the bytes that it stands for, in up to 2 ms. Those that were
    /// not coded are taken to.
    pub fn is_proven(&self, n: usize, piece: &Piece) -> bool {
        let opened = || piece.entry().open(piece.chunk.bytes().clone(), self.key.as_deref());
        !piece.form.is_coded() || opened().is_ok_and(|opened| Some(&opened) == self.raw(n))
    }

    /// The cut data set, of all its pieces in order; none when some are missing.
    pub fn finish(&self, mut pieces: Vec<Piece>) -> Option<CutInstance> {
        if pieces.len() != self.pieces() {
            return None;
        }
        let pixels = pieces.split_off(self.head.len());
        Some(CutInstance { head: pieces, pixels, dataset_hash: self.dataset_hash })
    }
}

impl Piece {
    fn raw(bytes: Bytes) -> Self {
        let raw_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { chunk: Chunk::new(bytes), form: Form::Raw, raw_len }
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

    fn cut_with(dataset: &Bytes, part: PixelPart, key: Option<&Arc<StudyKey>>) -> CutInstance {
        let cutting = Cutting::new(dataset.clone(), Hash::of(dataset), part, key.cloned());
        let piece = |n| {
            let piece = cutting.piece(n).expect("made").expect("a piece");
            assert!(cutting.is_proven(n, &piece));
            piece
        };
        let pieces = (0..cutting.pieces()).map(piece).collect();
        cutting.finish(pieces).expect("all of them")
    }

    fn coded(dataset: &Bytes, part: PixelPart) -> CutInstance {
        cut_with(dataset, part, None)
    }

    fn joined(cut: &CutInstance) -> Vec<u8> {
        opened(cut, None)
    }

    fn opened(cut: &CutInstance, key: Option<&StudyKey>) -> Vec<u8> {
        let open = |piece: &Piece| piece.entry().open(piece.chunk.bytes().clone(), key).expect("opens").to_vec();
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
            if pixels_len >= 5_000 {
                assert!(cut.pixels.iter().all(|piece| piece.form == Form::Coded), "{pixels_len}");
                assert!(cut.stored_len() < 4_001 + pixels_len as u64 / 4);
            }
            assert_eq!(cut.pixels.len(), (pixels_len + 45).div_ceil(CODED_PIECE_BYTES), "what follows is not a piece");
            let whole_rows = |piece: &Piece| piece.raw_len.is_multiple_of(1_400);
            assert!(cut.pixels.iter().rev().skip(1).rev().skip(1).all(whole_rows), "but for what is around them");
        }
    }

    #[test]
    fn what_does_not_shrink_stays_raw_and_what_decodes_to_something_else_is_not_proven() {
        let shape = Shape { width: SampleWidth::One, components: 1, columns: 64, bits_stored: 8 };
        let mut noise = vec![0; 64_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let noise = Bytes::from(noise);
        let cut = coded(&noise, PixelPart { offset: 0, rows: Some((0, shape)) });
        assert_eq!((cut.pixels[0].form, cut.stored_len()), (Form::Raw, 64_000));
        let (rows, key) = (PixelPart { offset: 0, rows: Some((0, shape)) }, Arc::new(StudyKey::random()));
        for key in [None, Some(key)] {
            let of = |dataset: Vec<u8>| Cutting::new(dataset.clone().into(), Hash::of(&dataset), rows, key.clone());
            let (zeroes, ones) = (of(vec![0; 1000]), of(vec![1; 1000]));
            let piece = zeroes.piece(0).expect("made").expect("a piece");
            assert!(piece.form.is_coded() && zeroes.is_proven(0, &piece));
            assert!(!ones.is_proven(0, &piece), "it decodes to something else");
            let raw = ones.raw_piece(0).expect("made").expect("a piece");
            let opened = raw.entry().open(raw.chunk.bytes().clone(), key.as_deref()).expect("opens");
            assert!(!raw.form.is_coded() && opened == vec![1; 1000]);
        }
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

    #[test]
    fn sealed_pieces_open_to_the_data_set_and_fit_into_a_chunk_even_if_they_do_not_shrink() {
        let key = Arc::new(StudyKey::random());
        let mut noise = vec![0; 2 * CHUNK_BYTES_MAX + 5];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let shape = Shape { width: SampleWidth::One, components: 1, columns: 512, bits_stored: 8 };
        let smooth: Bytes = [vec![3; 4_012], smooth(1_400_000)].concat().into();
        let wide = Shape { width: SampleWidth::TwoLittle, components: 1, columns: 700, bits_stored: 12 };
        let noise = Bytes::from(noise);
        for (dataset, part, form) in [
            (&noise, PixelPart { offset: 0, rows: None }, Form::SealedRaw),
            (&noise, PixelPart { offset: CHUNK_BYTES_MAX + 1, rows: None }, Form::SealedRaw),
            (&noise, PixelPart { offset: 0, rows: Some((0, shape)) }, Form::SealedRaw),
            (&smooth, PixelPart { offset: 4_000, rows: Some((4_012, wide)) }, Form::SealedCoded),
            (&Bytes::new(), PixelPart { offset: 0, rows: None }, Form::SealedRaw),
        ] {
            let cut = cut_with(dataset, part, Some(&key));
            assert_eq!(opened(&cut, Some(&key)), *dataset);
            assert_eq!((cut.dataset_hash, cut.total_len()), (Hash::of(dataset), dataset.len() as u64));
            assert!(cut.head.iter().all(|piece| piece.form == Form::SealedRaw), "nothing is open");
            assert!(cut.pixels.iter().all(|piece| piece.form == form), "nothing is open");
            assert!(cut.chunks().all(|chunk| chunk.byte_len() <= CHUNK_BYTES_MAX));
            assert!(cut.entries().all(|entry| entry.is_sound()));
            assert!(
                cut.chunks().all(|chunk| Hash::of(chunk.bytes()) == chunk.hash()),
                "the address is of what is stored"
            );
        }
        let longest = cut_with(&noise, PixelPart { offset: 0, rows: None }, Some(&key));
        assert_eq!(longest.pixels[0].chunk.byte_len(), CHUNK_BYTES_MAX, "no room is given away");
    }
}

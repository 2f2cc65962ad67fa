//! Lossless coding of uncompressed pixel data, one chunk at a time.
//!
//! ```text
//! bytes -> samples -> prediction -> contexts, tokens -> rANS
//! ```
//! A piece of pixel data is rows of samples: each sample is predicted from those to its left and above,
//! and what is left is coded by how noisy the row above was there. Nothing is carried from one piece to the
//! next, so that each is fetched, verified and decoded alone. What is not rows of samples, and what zstd
//! packs better, is a zstd frame. `docs/protocol.md` has the format,
//! `docs/decisions/0015-a-codec-of-our-own.md` why it is one of our own.
//!
//! The encoder may be given any bytes under any shape: a wrong shape costs size, never a bit. The decoder
//! trusts nothing: its memory is bounded by [`RAW_LEN_MAX`], and all that is malformed is an error.

mod bits;
mod context;
mod format;
mod predict;
mod rans;
mod rows;
mod samples;
mod token;
mod wide;

pub use format::DecodeError;
pub use samples::{SampleWidth, Shape};

use format::{Coded, Rows, VERSION};

/// The longest piece, in bytes: the longest chunk, so that a chunk's memory is bounded before and after.
pub const RAW_LEN_MAX: usize = 1 << 20;

/// Bytes before the first row that a piece may have: an element's header, no more.
pub const PREFIX_LEN_MAX: usize = 64;

/// zstd's fastest regular level: what falls to it is rare, or mostly zeros.
const ZSTD_LEVEL: i32 = 1;

/// Fewer bytes than this are not worth a table.
const ROWS_LEN_MIN: usize = 512;

/// Codes a piece whose rows begin behind `prefix` bytes. `None` when that does not make it shorter, or
/// when it is longer than [`RAW_LEN_MAX`].
pub fn encode(raw: &[u8], prefix: usize, shape: Option<Shape>) -> Option<Vec<u8>> {
    if raw.len() > RAW_LEN_MAX {
        return None;
    }
    let rows = shape.filter(|_| prefix <= PREFIX_LEN_MAX).and_then(|shape| encode_rows(raw, prefix, shape));
    // Drawn images (palettes, overlays, masks) repeat exactly, which prediction can't use.
    let drawn = shape.is_none_or(|shape| shape.width == SampleWidth::One);
    let coded = match rows {
        Some(rows) if !drawn => rows,
        rows => {
            let packed = encode_packed(raw);
            match (rows, packed) {
                (Some(rows), Some(packed)) if packed.len() < rows.len() => packed,
                (Some(rows), _) => rows,
                (None, packed) => packed?,
            }
        }
    };
    (coded.len() < raw.len()).then_some(coded)
}

fn encode_rows(raw: &[u8], prefix: usize, shape: Shape) -> Option<Vec<u8>> {
    let row_len = shape.row_len()?;
    let body = raw.get(prefix..)?;
    let whole = body.len() / row_len * row_len;
    if whole < ROWS_LEN_MIN {
        return None;
    }
    let (body, tail) = body.split_at(whole);
    let layout = samples::Layout::choose(shape, body);
    let coded = wide::encode(body, &layout);
    let header = Rows {
        layout,
        prefix: raw.get(..prefix)?,
        rows: u32::try_from(whole / row_len).ok()?,
        tail,
        frequencies: coded.frequencies,
        bits: &coded.bits,
    };
    Some(header.write(&coded.words))
}

fn encode_packed(raw: &[u8]) -> Option<Vec<u8>> {
    let mut packed = vec![0; 2 + zstd::zstd_safe::compress_bound(raw.len())];
    let (head, frame) = packed.split_at_mut(2);
    head.copy_from_slice(&[VERSION, format::PACKED]);
    let len = zstd::bulk::compress_to_buffer(raw, frame, ZSTD_LEVEL).ok()?;
    packed.truncate(2 + len);
    Some(packed)
}

/// Undoes [`encode`] for a piece of `raw_len` bytes.
///
/// # Errors
/// [`DecodeError`]: the bytes are not what [`encode`] makes of a piece of that length.
pub fn decode(coded: &[u8], raw_len: usize) -> Result<Vec<u8>, DecodeError> {
    if raw_len > RAW_LEN_MAX {
        return Err(DecodeError::TooLong);
    }
    match format::read(coded, raw_len)? {
        Coded::Packed(frame) => {
            // The buffer's size bounds what a frame can ask for.
            let raw = zstd::bulk::decompress(frame, raw_len).map_err(|_| DecodeError::Packed)?;
            if raw.len() == raw_len { Ok(raw) } else { Err(DecodeError::Length) }
        }
        Coded::Rows(rows, words) => {
            let mut raw = Vec::with_capacity(raw_len);
            raw.extend_from_slice(rows.prefix);
            wide::decode(&rows, words, &mut raw)?;
            raw.extend_from_slice(rows.tail);
            if raw.len() == raw_len { Ok(raw) } else { Err(DecodeError::Length) }
        }
    }
}

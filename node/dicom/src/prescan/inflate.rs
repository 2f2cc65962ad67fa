//! Inflating a deflated data set (PS3.5 annex A.5) under a ratio and a cap.

use flate2::{Decompress, FlushDecompress, Status};

use super::{INFLATE_FREE_LEN, INFLATE_RATIO_MAX, INFLATED_LEN_MAX};
use crate::rejection::Rejection;

/// How much the output grows at a time: what a bomb costs beyond the bound.
const STEP_LEN: usize = 64 << 10;

pub(super) struct Inflated {
    pub(super) bytes: Vec<u8>,
    /// Whether more than the one byte of padding follows the stream.
    pub(super) bytes_follow: bool,
}

pub(super) fn inflate(deflated: &[u8]) -> Result<Inflated, Rejection> {
    let allowed = deflated.len().saturating_mul(INFLATE_RATIO_MAX).max(INFLATE_FREE_LEN);
    let mut stream = Decompress::new(false);
    let mut bytes = Vec::new();
    loop {
        let consumed = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        let rest = deflated.get(consumed..).unwrap_or_default();
        let before = bytes.len();
        bytes.reserve(STEP_LEN);
        let status = stream.decompress_vec(rest, &mut bytes, FlushDecompress::None);
        let status = status.map_err(|_| Rejection::BrokenDeflate)?;
        if bytes.len() > INFLATED_LEN_MAX {
            return Err(Rejection::InflateSize);
        }
        if bytes.len() > allowed {
            return Err(Rejection::InflateRatio);
        }
        let consumed_now = usize::try_from(stream.total_in()).unwrap_or(usize::MAX);
        match status {
            Status::StreamEnd => {
                let bytes_follow = deflated.len().saturating_sub(consumed_now) > 1;
                return Ok(Inflated { bytes, bytes_follow });
            }
            // No progress though there is room: the stream is cut short.
            Status::Ok | Status::BufError if bytes.len() == before && consumed_now == consumed => {
                return Err(Rejection::BrokenDeflate);
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

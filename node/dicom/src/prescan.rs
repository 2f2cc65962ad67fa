//! The pre-scan: every data set from outside is read here first, once, within bounds.
//!
//! It says whether the structure is sound (lengths that fit, sequences that close, nothing too deep
//! or too many), where the pixels begin, and whether they can be what the header says. A sound data
//! set whose pixels contradict its header is kept and marked [`Undecodable`]: losing an image is
//! worse than showing that one cannot be shown.
//!
//! Nothing is allocated by a declared length. The one buffer that may grow large is that of a
//! deflated data set, under [`INFLATE_RATIO_MAX`] and [`INFLATED_LEN_MAX`].

mod geometry;
mod inflate;

use crate::element::{Coding, header};
use crate::rejection::Rejection;
use crate::transfer_syntax::Layout;
use crate::uid::Uid;
use crate::walk::walk;

pub use geometry::{PixelRows, Undecodable};

/// Deepest nesting of sequences. Structured reports reach about 15; the readers behind us recurse.
pub const DEPTH_MAX: usize = 64;
/// Most elements, items and fragments of a data set: an enhanced multi-frame object of 10,000 frames
/// with 100 elements each has half of it. Walking that many takes about 50 ms.
pub const ELEMENTS_MAX: usize = 2_000_000;
/// Most bytes that a deflated byte may become. Deflate's own limit is 1,032; images stay under 10.
pub const INFLATE_RATIO_MAX: usize = 100;
/// Inflating up to here is harmless whatever the ratio: a small all-black image exceeds 100 to 1.
pub const INFLATE_FREE_LEN: usize = 1 << 20;
/// Most bytes of an inflated data set: it is held in memory while it is scanned.
pub const INFLATED_LEN_MAX: usize = 256 << 20;

/// What the pre-scan learnt of a sound data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Where the pixel element begins in the bytes as received; `None` when there is none, and for
    /// a deflated data set, which has no such place.
    pub pixel_offset: Option<usize>,
    /// Whether there are pixels at all.
    pub has_pixels: bool,
    /// Where and what the pixels are, when they are uncompressed and of one or two bytes a sample.
    pub native_pixels: Option<NativePixels>,
    /// Why the pixels cannot be decoded, when that is known already.
    pub undecodable: Option<Undecodable>,
    /// What is odd about the data set, each at most once.
    pub warnings: Vec<Warning>,
    /// Elements of the top level.
    pub top_level_elements: usize,
    /// Elements, items and fragments in all.
    pub elements: usize,
    head_len: usize,
    inflated_head: Option<Vec<u8>>,
}

/// Uncompressed pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NativePixels {
    /// Where the value of the pixel element begins.
    pub value_offset: usize,
    /// What its rows look like.
    pub rows: PixelRows,
    /// Whether the upper byte of a sample comes first.
    pub is_big_endian: bool,
}

/// Something odd that is tolerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Tags of the top level do not ascend, PS3.5 section 7.1.
    #[error("tags out of order")]
    OutOfOrder,
    /// A tag stands twice in a row at the top level.
    #[error("repeated tag")]
    RepeatedTag,
    /// A value of odd length, PS3.5 section 7.1.1.
    #[error("value of odd length")]
    OddLength,
    /// Zeros after the last element.
    #[error("trailing zeros")]
    TrailingZeros,
    /// Bytes after the end of the deflated stream.
    #[error("bytes after the deflated stream")]
    AfterDeflate,
    /// More native pixel bytes than the header asks for.
    #[error("more pixel bytes than the geometry needs")]
    PixelSurplus,
}

impl Scan {
    /// The data set without its pixels, as elements: what [`crate::attributes::read`] takes.
    /// Inflated, when the data set is deflated. `dataset` is what was scanned.
    pub fn head<'a>(&'a self, dataset: &'a [u8]) -> &'a [u8] {
        match &self.inflated_head {
            Some(head) => head,
            None => dataset.get(..self.head_len).unwrap_or(dataset),
        }
    }

    /// Where to cut the bytes as received into head and pixels, so that both can be stored apart:
    /// the pixel element's offset, or the end. A deflated data set is not cut: its original bytes
    /// are what is stored.
    pub fn cut(&self, dataset: &[u8]) -> usize {
        self.pixel_offset.unwrap_or(dataset.len())
    }
}

/// Scans a data set (no preamble, no file meta information) in its transfer syntax.
///
/// # Errors
/// The [`Rejection`] to answer with; nothing else may then read these bytes.
pub fn scan(dataset: &[u8], transfer_syntax: &Uid) -> Result<Scan, Rejection> {
    let layout = Layout::of(transfer_syntax);
    if layout != Layout::DeflatedLe {
        return scan_elements(dataset, layout);
    }
    let inflated = inflate::inflate(dataset)?;
    let mut scan = scan_elements(&inflated.bytes, layout)?;
    if inflated.bytes_follow {
        scan.warnings.push(Warning::AfterDeflate);
    }
    let mut head = inflated.bytes;
    head.truncate(scan.head_len);
    head.shrink_to_fit();
    scan.inflated_head = Some(head);
    scan.pixel_offset = None;
    scan.native_pixels = None;
    Ok(scan)
}

fn scan_elements(bytes: &[u8], layout: Layout) -> Result<Scan, Rejection> {
    let mut geometry = geometry::Geometry::default();
    let walked = walk(bytes, coding_of(layout), layout == Layout::EncapsulatedLe, &mut geometry)?;
    let verdict = geometry.verdict();
    let warnings = [
        (walked.out_of_order, Warning::OutOfOrder),
        (walked.repeated_tag, Warning::RepeatedTag),
        (walked.odd_length, Warning::OddLength),
        (walked.trailing_zeros, Warning::TrailingZeros),
        (verdict == Ok(geometry::Fit::Surplus), Warning::PixelSurplus),
    ];
    let coding = coding_of(layout);
    let native = walked.pixel_offset.filter(|_| layout != Layout::EncapsulatedLe).zip(geometry.rows());
    let native_pixels = match native {
        Some((offset, rows)) => Some(NativePixels {
            value_offset: offset + header(bytes, offset, coding)?.len,
            rows,
            is_big_endian: coding == Coding::ExplicitBe,
        }),
        None => None,
    };
    Ok(Scan {
        pixel_offset: walked.pixel_offset,
        native_pixels,
        has_pixels: walked.pixel_offset.is_some(),
        undecodable: verdict.err(),
        warnings: warnings.into_iter().filter(|(present, _)| *present).map(|(_, warning)| warning).collect(),
        top_level_elements: walked.top_level,
        elements: walked.elements,
        head_len: walked.pixel_offset.unwrap_or(bytes.len()),
        inflated_head: None,
    })
}

/// How the elements of a layout are coded; those of a deflated one once inflated.
pub(crate) fn coding_of(layout: Layout) -> Coding {
    match layout {
        Layout::ImplicitLe => Coding::ImplicitLe,
        Layout::ExplicitBe => Coding::ExplicitBe,
        Layout::ExplicitLe | Layout::DeflatedLe | Layout::EncapsulatedLe => Coding::ExplicitLe,
    }
}

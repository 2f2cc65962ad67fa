//! Whether the pixels can be what the header says (PS3.3 sections C.7.6.3 and C.7.9), by checked
//! arithmetic on what strangers declare.

use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::rejection::Rejection;
use crate::walk::{Content, DOUBLE_PIXEL_DATA, Element, FLOAT_PIXEL_DATA, PIXEL_DATA, Visit};

/// Most decoded bytes of one instance that a viewer could be asked for. Whole-slide levels and long
/// cine runs stay under a tenth of it.
const DECODED_LEN_MAX: u64 = 64 << 30;

/// Longest text of a number of frames: an integer string has 12 characters, PS3.5 section 6.2.
const INTEGER_STRING_LEN_MAX: usize = 12;

/// Why pixels cannot be decoded, though the data set is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// An attribute of the geometry is absent.
    #[error("element {0}, which the pixels need, is missing")]
    Missing(Tag),
    /// An attribute of the geometry has the wrong representation, is no number, or is zero.
    #[error("element {0}, which the pixels need, is invalid")]
    Invalid(Tag),
    /// Rows x columns x frames x samples x bits is beyond any image.
    #[error("the geometry overflows")]
    Overflow,
    /// Fewer native pixel bytes than the geometry needs.
    #[error("fewer pixel bytes than the geometry needs")]
    TooShort,
    /// Encapsulated pixels without a fragment.
    #[error("no pixel fragments")]
    NoFragments,
    /// A palette that is absent or has fewer entries than its descriptor says.
    #[error("the palette is incomplete")]
    Palette,
}

/// How the pixels fit their geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    NoPixels,
    Fits,
    /// More native bytes than needed, beyond padding.
    Surplus,
}

/// What the rows of native pixels look like in their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelRows {
    /// 1 or 2.
    pub sample_bytes: u8,
    /// Samples that lie together: those of a pixel, or 1 when each component has a plane of its own.
    pub components: u8,
    /// How often these repeat in a row.
    pub columns: u16,
    /// Bits Stored (0028,0101).
    pub bits_stored: u8,
}

/// Collects what the verdict needs; visits a whole data set.
#[derive(Debug, Default)]
pub(super) struct Geometry {
    rows: Number,
    columns: Number,
    frames: Number,
    samples: Number,
    bits_allocated: Number,
    bits_stored: Number,
    planar_configuration: Number,
    photometric: Photometric,
    pixels: Option<Pixels>,
    palette: [Palette; 3],
}

#[derive(Debug, Clone, Copy, Default)]
enum Number {
    #[default]
    Absent,
    Invalid,
    Value(u64),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Photometric {
    #[default]
    Other,
    Palette,
    /// Two samples a pixel are stored where three are declared, PS3.3 section C.7.6.3.1.2.
    Subsampled,
}

#[derive(Debug, Clone, Copy)]
enum Pixels {
    Native(u64),
    Encapsulated { items: usize },
    Invalid,
}

#[derive(Debug, Clone, Copy, Default)]
struct Palette {
    /// Entries and bits an entry.
    descriptor: Option<(u64, u64)>,
    len: Option<u64>,
    segmented: bool,
}

impl Visit for Geometry {
    fn element(&mut self, element: &Element<'_>) -> Result<(), Rejection> {
        if element.depth > 0 {
            return Ok(());
        }
        match element.tag {
            tags::ROWS => self.rows = unsigned_short(element),
            tags::COLUMNS => self.columns = unsigned_short(element),
            tags::SAMPLES_PER_PIXEL => self.samples = unsigned_short(element),
            tags::BITS_ALLOCATED => self.bits_allocated = unsigned_short(element),
            tags::BITS_STORED => self.bits_stored = unsigned_short(element),
            tags::PLANAR_CONFIGURATION => self.planar_configuration = unsigned_short(element),
            tags::NUMBER_OF_FRAMES => self.frames = integer_string(element),
            tags::PHOTOMETRIC_INTERPRETATION => self.photometric = photometric(element),
            PIXEL_DATA | FLOAT_PIXEL_DATA | DOUBLE_PIXEL_DATA => {
                self.pixels = Some(match element.content {
                    Content::Value(value) => Pixels::Native(value.len() as u64),
                    Content::Fragments(items) => Pixels::Encapsulated { items },
                    Content::Sequence => Pixels::Invalid,
                });
            }
            Tag(0x0028, 0x1101..=0x1103) => self.colour(element).descriptor = palette_descriptor(element),
            Tag(0x0028, 0x1201..=0x1203) => {
                self.colour(element).len = element.value().map(|value| value.len() as u64);
            }
            Tag(0x0028, 0x1221..=0x1223) => self.colour(element).segmented = true,
            _ => {}
        }
        Ok(())
    }
}

impl Geometry {
    fn colour(&mut self, element: &Element<'_>) -> &mut Palette {
        &mut self.palette[usize::from(element.tag.element() & 3).saturating_sub(1).min(2)]
    }

    /// What the rows of native pixels look like; `None` when they are not of one or two bytes a sample.
    pub(super) fn rows(&self) -> Option<PixelRows> {
        let (Some(Pixels::Native(_)), Number::Value(columns)) = (self.pixels, self.columns) else { return None };
        let columns = u16::try_from(columns).ok()?;
        let sample_bytes = match self.bits_allocated {
            Number::Value(8) => 1,
            Number::Value(16) => 2,
            _ => return None,
        };
        let samples = match self.samples {
            Number::Value(samples @ 1..=4) => u8::try_from(samples).ok()?,
            _ => return None,
        };
        let bits_stored = match self.bits_stored {
            Number::Value(bits) => u8::try_from(bits.clamp(1, 8 * sample_bytes)).ok()?,
            _ => u8::try_from(8 * sample_bytes).ok()?,
        };
        let is_planar = matches!(self.planar_configuration, Number::Value(1));
        let (columns, components) = match (samples, self.photometric) {
            // Two luminances, then what two pixels share of either colour.
            (3, Photometric::Subsampled) => (columns / 2, 4),
            _ if is_planar => (columns, 1),
            _ => (columns, samples),
        };
        let sample_bytes = if sample_bytes == 1 { 1 } else { 2 };
        Some(PixelRows { sample_bytes, components, columns, bits_stored })
    }

    pub(super) fn verdict(&self) -> Result<Fit, Undecodable> {
        let Some(pixels) = self.pixels else {
            return Ok(Fit::NoPixels);
        };
        let bits = self.decoded_bits()?;
        if self.photometric == Photometric::Palette && !self.palette.iter().all(Palette::is_complete) {
            return Err(Undecodable::Palette);
        }
        match pixels {
            Pixels::Native(len) => {
                // 4:2:2 stores two samples of three.
                let bits = if self.photometric == Photometric::Subsampled { bits / 3 * 2 } else { bits };
                let needed = bits.div_ceil(8);
                if len < needed {
                    Err(Undecodable::TooShort)
                } else if len > needed + needed % 2 {
                    Ok(Fit::Surplus)
                } else {
                    Ok(Fit::Fits)
                }
            }
            // The first item is the offset table.
            Pixels::Encapsulated { items } if items >= 2 => Ok(Fit::Fits),
            Pixels::Encapsulated { .. } => Err(Undecodable::NoFragments),
            Pixels::Invalid => Err(Undecodable::Invalid(PIXEL_DATA)),
        }
    }

    fn decoded_bits(&self) -> Result<u64, Undecodable> {
        let frames = match self.frames {
            Number::Absent => 1,
            number => number.required(tags::NUMBER_OF_FRAMES)?,
        };
        let factors = [
            self.rows.required(tags::ROWS)?,
            self.columns.required(tags::COLUMNS)?,
            self.samples.required(tags::SAMPLES_PER_PIXEL)?,
            self.bits_allocated.required(tags::BITS_ALLOCATED)?,
            frames,
        ];
        let bits = factors.into_iter().try_fold(1_u64, u64::checked_mul).ok_or(Undecodable::Overflow)?;
        if bits / 8 > DECODED_LEN_MAX { Err(Undecodable::Overflow) } else { Ok(bits) }
    }
}

impl Number {
    fn required(self, tag: Tag) -> Result<u64, Undecodable> {
        match self {
            Self::Absent => Err(Undecodable::Missing(tag)),
            Self::Invalid | Self::Value(0) => Err(Undecodable::Invalid(tag)),
            Self::Value(value) => Ok(value),
        }
    }
}

impl Palette {
    fn is_complete(&self) -> bool {
        match (self.descriptor, self.len) {
            // Run-length coded; its reader checks as it expands.
            _ if self.segmented => true,
            (Some((entries, bits)), Some(len)) => len >= entries * (bits / 8),
            _ => false,
        }
    }
}

fn unsigned_short(element: &Element<'_>) -> Number {
    match (element.vr, element.value()) {
        (None, Some(&[a, b])) => Number::Value(element.coding.u16([a, b]).into()),
        (Some(vr), Some(&[a, b])) if &vr == b"US" => Number::Value(element.coding.u16([a, b]).into()),
        _ => Number::Invalid,
    }
}

fn integer_string(element: &Element<'_>) -> Number {
    if element.vr.is_some_and(|vr| &vr != b"IS") {
        return Number::Invalid;
    }
    let text = element.value().and_then(|value| std::str::from_utf8(value).ok()).unwrap_or("-");
    let text = text.trim_matches([' ', '\0']);
    match text {
        "" => Number::Absent,
        _ if text.len() > INTEGER_STRING_LEN_MAX => Number::Invalid,
        _ => text.parse().map_or(Number::Invalid, Number::Value),
    }
}

fn photometric(element: &Element<'_>) -> Photometric {
    let value = element.value().unwrap_or_default();
    if value.starts_with(b"PALETTE COLOR") {
        Photometric::Palette
    } else if value.starts_with(b"YBR_FULL_422") || value.starts_with(b"YBR_PARTIAL_422") {
        Photometric::Subsampled
    } else {
        Photometric::Other
    }
}

/// Number of entries (zero means 65,536), first mapped value, bits an entry: PS3.3 section
/// C.7.6.3.1.5.
fn palette_descriptor(element: &Element<'_>) -> Option<(u64, u64)> {
    let &[a, b, _, _, c, d] = element.value()? else {
        return None;
    };
    let entries = match element.coding.u16([a, b]) {
        0 => 0x1_0000,
        entries => u64::from(entries),
    };
    match element.coding.u16([c, d]) {
        bits @ (8 | 16) => Some((entries, bits.into())),
        _ => None,
    }
}

//! Bytes as samples: of one or two bytes, in either byte order, of one component after another.
//!
//! A sample becomes a signed 16-bit number whose order is the image's: that is what prediction needs. A
//! mask does it, by exclusive or: 0x8000 for unsigned samples of 16 bits, the sign bit for signed ones that
//! were not extended, 0 for all others. The encoder tries which is smoothest rather than believe a header.

/// The largest number of components that are told apart.
const COMPONENTS_MAX: usize = 4;
/// Rows that are looked at to choose a layout.
const ROWS_TRIED: usize = 8;

/// Bytes of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleWidth {
    /// 8 bits allocated.
    One,
    /// 16 bits allocated, the lower byte first.
    TwoLittle,
    /// 16 bits allocated, the upper byte first.
    TwoBig,
}

impl SampleWidth {
    pub(crate) fn bytes(self) -> usize {
        if self == Self::One { 1 } else { 2 }
    }
}

/// What the rows of an image look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a sample, by Bits Allocated (0028,0100) and the transfer syntax.
    pub width: SampleWidth,
    /// Samples of a pixel that lie together: Samples per Pixel (0028,0002) with Planar Configuration
    /// (0028,0006) 0, and 1 with Planar Configuration 1. At most 4.
    pub components: u8,
    /// Columns (0028,0011).
    pub columns: u32,
    /// Bits Stored (0028,0101); a hint.
    pub bits_stored: u8,
}

impl Shape {
    /// Bytes of a row; `None` for no shape of an image.
    pub fn row_len(&self) -> Option<usize> {
        let components = usize::from(self.components);
        let columns = usize::try_from(self.columns).ok()?;
        if components == 0 || components > COMPONENTS_MAX || columns == 0 || columns > crate::RAW_LEN_MAX {
            return None;
        }
        Some(columns * components * self.width.bytes())
    }
}

/// How rows of bytes are turned into rows of numbers, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) width: SampleWidth,
    pub(crate) components: usize,
    pub(crate) columns: usize,
    pub(crate) mask: u16,
    /// Whether the second of three components was subtracted from the others.
    pub(crate) subtracted: bool,
}

impl Layout {
    /// The layout in which a few rows of `body` are smoothest.
    pub(crate) fn choose(shape: Shape, body: &[u8]) -> Self {
        let components = usize::from(shape.components);
        let columns = usize::try_from(shape.columns).unwrap_or(0);
        let plain = Self { width: shape.width, components, columns, mask: 0, subtracted: false };
        let sign = 1_u16.checked_shl(u32::from(shape.bits_stored).saturating_sub(1)).unwrap_or(0x8000);
        let masks = match shape.width {
            SampleWidth::One => [0, 0x80, 0x80],
            _ => [0x8000, 0, sign],
        };
        let subtracted: &[bool] = if components == 3 { &[false, true] } else { &[false] };
        let layouts = masks.iter().flat_map(|mask| {
            subtracted.iter().map(move |subtracted| Self { mask: *mask, subtracted: *subtracted, ..plain })
        });
        layouts.min_by_key(|layout| layout.roughness(body)).unwrap_or(plain)
    }

    /// Differences of neighbours in a few rows.
    fn roughness(&self, body: &[u8]) -> u64 {
        let rows = body.len() / self.row_len().max(1);
        let mut planes = Planes::new(self);
        let mut sum = 0;
        for row in body.chunks_exact(self.row_len()).step_by(rows.div_ceil(ROWS_TRIED).max(1)) {
            planes.load(row, self);
            for plane in &planes.rows {
                for (left, here) in plane.iter().zip(plane.iter().skip(1)) {
                    sum += u64::from(here.wrapping_sub(*left).unsigned_abs());
                }
            }
        }
        sum
    }

    pub(crate) fn row_len(&self) -> usize {
        self.columns * self.components * self.width.bytes()
    }
}

/// One row of numbers for each component.
#[derive(Debug)]
pub(crate) struct Planes {
    pub(crate) rows: Vec<Vec<i16>>,
    interleaved: Vec<i16>,
}

impl Planes {
    pub(crate) fn new(layout: &Layout) -> Self {
        let interleaved = if layout.components > 1 { layout.components * layout.columns } else { 0 };
        Self { rows: vec![vec![0; layout.columns]; layout.components], interleaved: vec![0; interleaved] }
    }

    /// Takes a row of bytes.
    #[inline(always)]
    pub(crate) fn load(&mut self, bytes: &[u8], layout: &Layout) {
        if let [only] = &mut self.rows[..] {
            return load(bytes, layout, only);
        }
        load(bytes, layout, &mut self.interleaved);
        for (component, row) in self.rows.iter_mut().enumerate() {
            for (out, pixel) in row.iter_mut().zip(self.interleaved.chunks_exact(layout.components)) {
                *out = pixel[component];
            }
        }
        if let ([first, second, third], true) = (&mut self.rows[..], layout.subtracted) {
            for ((first, second), third) in first.iter_mut().zip(second).zip(third) {
                *first = first.wrapping_sub(*second);
                *third = third.wrapping_sub(*second);
            }
        }
    }

    /// Gives a row of bytes, which spoils the numbers when components were subtracted: `false` when a
    /// number is none of a sample's.
    #[inline(always)]
    pub(crate) fn store(&mut self, layout: &Layout, bytes: &mut Vec<u8>) -> bool {
        if let [only] = &self.rows[..] {
            return store(only, layout, bytes);
        }
        for (component, row) in self.rows.iter().enumerate() {
            for (number, pixel) in row.iter().zip(self.interleaved.chunks_exact_mut(layout.components)) {
                pixel[component] = *number;
            }
        }
        if layout.subtracted {
            for pixel in self.interleaved.chunks_exact_mut(3) {
                pixel[0] = pixel[0].wrapping_add(pixel[1]);
                pixel[2] = pixel[2].wrapping_add(pixel[1]);
            }
        }
        store(&self.interleaved, layout, bytes)
    }
}

#[inline(always)]
fn load(bytes: &[u8], layout: &Layout, out: &mut [i16]) {
    let mask = layout.mask;
    let pairs = bytes.as_chunks::<2>().0;
    match layout.width {
        SampleWidth::One => {
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = (u16::from(*byte) ^ mask).cast_signed();
            }
        }
        SampleWidth::TwoLittle => {
            for (out, pair) in out.iter_mut().zip(pairs) {
                *out = (u16::from_le_bytes(*pair) ^ mask).cast_signed();
            }
        }
        SampleWidth::TwoBig => {
            for (out, pair) in out.iter_mut().zip(pairs) {
                *out = (u16::from_be_bytes(*pair) ^ mask).cast_signed();
            }
        }
    }
}

#[inline(always)]
fn store(numbers: &[i16], layout: &Layout, bytes: &mut Vec<u8>) -> bool {
    let at = bytes.len();
    bytes.resize(at + numbers.len() * layout.width.bytes(), 0);
    let out = &mut bytes[at..];
    let mask = layout.mask;
    match layout.width {
        SampleWidth::One => {
            let mut upper = 0;
            for (out, number) in out.iter_mut().zip(numbers) {
                let [low, high] = (number.cast_unsigned() ^ mask).to_le_bytes();
                upper |= high;
                *out = low;
            }
            return upper == 0;
        }
        SampleWidth::TwoLittle => {
            for (out, number) in out.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
                *out = (number.cast_unsigned() ^ mask).to_le_bytes();
            }
        }
        SampleWidth::TwoBig => {
            for (out, number) in out.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
                *out = (number.cast_unsigned() ^ mask).to_be_bytes();
            }
        }
    }
    true
}

//! Images to code: by a formula, so that they are the same everywhere and for ever.

use maillage_codec::{SampleWidth, Shape};

/// A generator of numbers (SplitMix64; Steele, Lea and Flood 2014).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// What the samples are like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    Constant,
    /// A scanner's: slopes, edges, a little noise.
    Image,
    /// Every value as likely as another.
    Noise,
    /// The least and the greatest value in turn.
    Extremes,
    /// An image in the bits stored, signed, and anything in the bits above.
    Padded,
}

/// `rows` rows of `shape`.
pub(crate) fn image(shape: &Shape, rows: usize, content: Content, seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let components = usize::from(shape.components);
    let columns = shape.columns as usize;
    let mut bytes = Vec::new();
    for y in 0..rows {
        for x in 0..columns {
            for component in 0..components {
                let noise = numbers.next();
                let smooth = (400 + 3 * x + 2 * y + 5 * component + 300 * usize::from((x / 7 + y / 5) % 2 == 0)) as u64
                    + noise % 6;
                let sample = match content {
                    Content::Constant => 77,
                    Content::Image => smooth,
                    Content::Noise => noise,
                    Content::Extremes => u64::from((x + y) % 2 == 0) * u64::MAX,
                    Content::Padded => {
                        let stored = (1_u64 << shape.bits_stored) - 1;
                        (smooth.wrapping_sub(900) & stored) | (noise & !stored)
                    }
                };
                let [low, high, ..] = sample.to_le_bytes();
                match shape.width {
                    SampleWidth::One => bytes.push(low),
                    SampleWidth::TwoLittle => bytes.extend([low, high]),
                    SampleWidth::TwoBig => bytes.extend([high, low]),
                }
            }
        }
    }
    bytes
}

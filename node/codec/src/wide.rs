//! The loops over a piece, compiled twice: for every processor of the target, and for x86-64 with AVX2 and
//! BMI2 (2013 on), found out when it runs. Both give the same bytes: all is whole numbers.

use crate::DecodeError;
use crate::format::Rows;
use crate::rows::{self, CodedRows};
use crate::samples::Layout;

/// [`rows::encode`].
pub(crate) fn encode(body: &[u8], layout: &Layout) -> CodedRows {
    #[cfg(target_arch = "x86_64")]
    if x86_64::is_wide() {
        return x86_64::encode(body, layout);
    }
    rows::encode(body, layout)
}

/// [`rows::decode`].
pub(crate) fn decode(rows: &Rows<'_>, words: &[u8], raw: &mut Vec<u8>) -> Result<(), DecodeError> {
    #[cfg(target_arch = "x86_64")]
    if x86_64::is_wide() {
        return x86_64::decode(rows, words, raw);
    }
    rows::decode(rows, words, raw)
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{CodedRows, DecodeError, Layout, Rows, rows};

    pub(super) fn is_wide() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
    }

    pub(super) fn encode(body: &[u8], layout: &Layout) -> CodedRows {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        fn wide(body: &[u8], layout: &Layout) -> CodedRows {
            rows::encode(body, layout)
        }
        assert!(is_wide(), "asked of a processor that is not");
        #[expect(unsafe_code, reason = "the compiler cannot know the processor")]
        // SAFETY: the processor has the features of the function, by the line above.
        unsafe {
            wide(body, layout)
        }
    }

    pub(super) fn decode(rows: &Rows<'_>, words: &[u8], raw: &mut Vec<u8>) -> Result<(), DecodeError> {
        #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
        fn wide(rows: &Rows<'_>, words: &[u8], raw: &mut Vec<u8>) -> Result<(), DecodeError> {
            rows::decode(rows, words, raw)
        }
        assert!(is_wide(), "asked of a processor that is not");
        #[expect(unsafe_code, reason = "the compiler cannot know the processor")]
        // SAFETY: the processor has the features of the function, by the line above.
        unsafe {
            wide(rows, words, raw)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{SampleWidth, Shape};

    /// Smooth, noisy and rough in turn, so that tokens of all kinds come.
    fn rough(len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        random(&mut noise);
        let amplitude = |n: usize| u16::from(noise[n]) & [0, 7, 63, 255][n / 4096 % 4];
        let sample = |n: usize| u16::try_from(n % 511).expect("small") + 40 * amplitude(n);
        (0..len / 2).flat_map(|n| sample(n).to_le_bytes()).collect()
    }

    /// Bytes as good as random, the same each time (xorshift, Marsaglia 2003).
    fn random(out: &mut [u8]) {
        let mut state = 88_172_645_463_325_252_u64;
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32 & 0xFF) as u8;
        }
    }

    #[test]
    fn both_give_the_same_bytes() {
        for (width, components, columns) in
            [(SampleWidth::TwoLittle, 1, 512), (SampleWidth::TwoBig, 1, 77), (SampleWidth::One, 3, 61)]
        {
            let shape = Shape { width, components, columns, bits_stored: 12 };
            let row_len = shape.row_len().expect("an image");
            let body = rough(100_000 / row_len * row_len);
            let layout = Layout::choose(shape, &body);
            let (wide, narrow) = (encode(&body, &layout), rows::encode(&body, &layout));
            assert!(
                wide.words == narrow.words && wide.bits == narrow.bits && wide.frequencies == narrow.frequencies,
                "{shape:?}"
            );
            assert!(!narrow.bits.is_empty(), "some tokens leave out bits");
            let words: Vec<u8> = narrow.words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let read = || Rows {
                layout,
                prefix: &[],
                rows: u32::try_from(body.len() / row_len).expect("few"),
                tail: &[],
                frequencies: narrow.frequencies.clone(),
                bits: &narrow.bits,
            };
            let (mut by_wide, mut by_narrow) = (Vec::new(), Vec::new());
            assert_eq!(decode(&read(), &words, &mut by_wide), Ok(()));
            assert_eq!(rows::decode(&read(), &words, &mut by_narrow), Ok(()));
            assert!(by_wide == body && by_narrow == body, "{shape:?}");
        }
    }
}

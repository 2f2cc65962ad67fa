//! What a stranger may send under the name of coded bytes: an error, or bytes of the length asked for; never
//! a panic, and no more memory than a piece.

use maillage_codec::{DecodeError, RAW_LEN_MAX, SampleWidth, Shape, decode, encode};
use proptest::prelude::{any, prop};
use proptest::{prop_assert, proptest};

use crate::images::{Content, image};
use crate::round_trip::{contents, shapes};

const SHAPE: Shape = Shape { width: SampleWidth::TwoLittle, components: 1, columns: 40, bits_stored: 12 };

fn sample() -> (Vec<u8>, Vec<u8>) {
    let raw = [&[7; 12][..], &image(&SHAPE, 40, Content::Image, 9), b"behind"].concat();
    let coded = encode(&raw, 12, Some(SHAPE)).unwrap();
    (raw, coded)
}

proptest! {
    #[test]
    fn mutated_bytes_never_panic(
        shape in shapes(),
        content in contents(),
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cut in 0_usize..3,
        packed: bool,
    ) {
        let raw = image(&shape, 40, content, 11);
        let Some(mut coded) = encode(&raw, 0, Some(shape).filter(|_| !packed)) else { return Ok(()) };
        for (at, value) in changes {
            let at = at % coded.len();
            coded[at] = value;
        }
        coded.truncate(coded.len() - cut);
        if let Ok(decoded) = decode(&coded, raw.len()) {
            prop_assert!(decoded.len() == raw.len());
        }
    }

    #[test]
    fn noise_under_a_plausible_header_never_panics(
        flags in 0_u8..9, components in 0_u8..6, columns in 0_u32..50, rows in 0_u32..50,
        noise in prop::collection::vec(any::<u8>(), 0..900),
    ) {
        let width = if flags & 1 == 1 { 2 } else { 1 };
        let raw_len = columns as usize * rows as usize * usize::from(components) * width;
        let mut coded = vec![1, 1, flags, components];
        for number in [columns, 0, 0, rows, 0, 16] {
            coded.extend(number.to_le_bytes());
        }
        coded.extend(noise);
        if let Ok(decoded) = decode(&coded, raw_len) {
            prop_assert!(decoded.len() == raw_len);
        }
    }
}

#[test]
fn what_is_cut_short_or_longer_is_an_error_at_every_byte() {
    let (raw, coded) = sample();
    assert_eq!(decode(&coded, raw.len()).unwrap(), raw);
    for len in 0..coded.len() {
        assert!(decode(&coded[..len], raw.len()).is_err(), "cut to {len} of {}", coded.len());
    }
    for more in [vec![0], vec![0, 0], vec![1, 2, 3, 4]] {
        assert!(decode(&[&coded[..], &more].concat(), raw.len()).is_err());
    }
}

#[test]
fn another_length_than_the_manifests_is_an_error() {
    let (raw, coded) = sample();
    for len in [0, raw.len() - 1, raw.len() + 1, RAW_LEN_MAX] {
        assert_eq!(decode(&coded, len), Err(DecodeError::Length));
    }
    assert_eq!(decode(&coded, RAW_LEN_MAX + 1), Err(DecodeError::TooLong));
    let packed = encode(&[5; 9000], 0, None).unwrap();
    assert_eq!(decode(&packed, 9001), Err(DecodeError::Length));
    // A frame that would become more than was asked for does not get the memory.
    assert_eq!(decode(&packed, 8999), Err(DecodeError::Packed));
}

#[test]
fn headers_that_no_encoder_writes_are_errors() {
    let (raw, coded) = sample();
    let with = |at: usize, value: u8| {
        let mut other = coded.clone();
        other[at] = value;
        decode(&other, raw.len())
    };
    assert_eq!(with(0, 2), Err(DecodeError::Version(2)));
    assert_eq!(with(1, 9), Err(DecodeError::Header));
    assert_eq!(with(2, 0x10), Err(DecodeError::Header), "an unknown flag");
    assert_eq!(with(2, 2), Err(DecodeError::Header), "big-endian bytes");
    assert_eq!(with(2, 5), Err(DecodeError::Header), "one component minus itself");
    assert_eq!(with(3, 0), Err(DecodeError::Header), "no components");
    assert_eq!(with(3, 5), Err(DecodeError::Header), "too many");
    assert_eq!(with(10, 1), Err(DecodeError::Header), "a mask of 17 bits");
    assert_eq!(with(12, 65), Err(DecodeError::Header), "a long prefix");
    assert_eq!(decode(&[], 0), Err(DecodeError::Truncated));
    // The first frequency behind header, prefix and tail.
    let frequencies = 28 + 12 + 6;
    assert_eq!(with(frequencies, 129), Err(DecodeError::Frequencies), "more tokens than there are");
    assert_eq!(with(frequencies + 1, coded[frequencies + 1] ^ 1), Err(DecodeError::Frequencies), "another sum");
}

#[test]
fn a_changed_word_or_bit_is_noticed_nearly_always() {
    let (raw, coded) = sample();
    let (mut accepted, mut tried) = (0, 0);
    for at in 28 + 18..coded.len() {
        let mut other = coded.clone();
        other[at] ^= 1 << (at % 8);
        tried += 1;
        // A plain bit is a sample's noise: any value of it is some image. All else is bound to end elsewhere.
        accepted += usize::from(decode(&other, raw.len()).is_ok());
    }
    assert!(accepted * 20 < tried, "{accepted} of {tried} changes passed");
}

//! The format of a coded piece, as `docs/protocol.md` tells it. All numbers little-endian.

use crate::context::CONTEXTS;
use crate::rans::Frequencies;
use crate::samples::{Layout, SampleWidth};
use crate::token::TOKENS;
use crate::{PREFIX_LEN_MAX, RAW_LEN_MAX};

/// The only version so far.
pub(crate) const VERSION: u8 = 1;
/// A zstd frame follows.
pub(crate) const PACKED: u8 = 0;
/// Rows follow.
const ROWS: u8 = 1;

const TWO_BYTES: u8 = 1;
const BIG_ENDIAN: u8 = 2;
const SUBTRACTED: u8 = 4;

/// Why coded bytes do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A piece is never so long.
    #[error("a piece has at most 1048576 bytes")]
    TooLong,
    /// A version that this software does not know.
    #[error("codec version {0} is unknown")]
    Version(u8),
    /// The bytes end too early.
    #[error("the coded bytes are cut short")]
    Truncated,
    /// A header that no encoder writes.
    #[error("the header contradicts itself")]
    Header,
    /// The piece would have another length.
    #[error("the piece would have another length")]
    Length,
    /// Frequencies that do not add up.
    #[error("the frequencies do not add up")]
    Frequencies,
    /// The entropy coder does not end where it must.
    #[error("the coded words are damaged")]
    Words,
    /// The plain bits do not end where they must.
    #[error("the plain bits are damaged")]
    Bits,
    /// A number that is no sample.
    #[error("a number is out of range")]
    Range,
    /// The zstd frame does not decode.
    #[error("the packed frame is damaged")]
    Packed,
}

/// A coded piece.
#[derive(Debug)]
pub(crate) enum Coded<'a> {
    /// A zstd frame.
    Packed(&'a [u8]),
    /// Rows, and their words.
    Rows(Rows<'a>, &'a [u8]),
}

/// What comes before the words of coded rows.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) layout: Layout,
    /// Bytes before the first row, as they are.
    pub(crate) prefix: &'a [u8],
    pub(crate) rows: u32,
    /// Bytes behind the last whole row, as they are.
    pub(crate) tail: &'a [u8],
    pub(crate) frequencies: Box<Frequencies>,
    pub(crate) bits: &'a [u8],
}

impl Rows<'_> {
    pub(crate) fn write(&self, words: &[u16]) -> Vec<u8> {
        let Layout { width, components, columns, mask, subtracted } = self.layout;
        let width = match width {
            SampleWidth::One => 0,
            SampleWidth::TwoLittle => TWO_BYTES,
            SampleWidth::TwoBig => TWO_BYTES | BIG_ENDIAN,
        };
        let flags = width | if subtracted { SUBTRACTED } else { 0 };
        let mut out = vec![VERSION, ROWS, flags, u8::try_from(components).unwrap_or(u8::MAX)];
        let mut put = |number: usize| out.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        for number in
            [columns, usize::from(mask), self.prefix.len(), self.rows as usize, self.tail.len(), self.bits.len()]
        {
            put(number);
        }
        out.extend_from_slice(self.prefix);
        out.extend_from_slice(self.tail);
        write_frequencies(&self.frequencies, &mut out);
        out.extend_from_slice(self.bits);
        out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out
    }
}

/// Reads all that comes before the words, and checks that the piece has `raw_len` bytes.
pub(crate) fn read(coded: &[u8], raw_len: usize) -> Result<Coded<'_>, DecodeError> {
    let mut input = Input(coded);
    let version = input.byte()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    match input.byte()? {
        PACKED => Ok(Coded::Packed(input.0)),
        ROWS => read_rows(input, raw_len),
        _ => Err(DecodeError::Header),
    }
}

fn read_rows(mut input: Input<'_>, raw_len: usize) -> Result<Coded<'_>, DecodeError> {
    let (flags, components) = (input.byte()?, usize::from(input.byte()?));
    let width = match flags & (TWO_BYTES | BIG_ENDIAN) {
        0 => SampleWidth::One,
        TWO_BYTES => SampleWidth::TwoLittle,
        BIG_ENDIAN => return Err(DecodeError::Header),
        _ => SampleWidth::TwoBig,
    };
    let subtracted = flags & SUBTRACTED != 0;
    let columns = input.number()?;
    let mask = u16::try_from(input.number()?).map_err(|_| DecodeError::Header)?;
    let [prefix_len, rows, tail_len, bits_len] = [input.number()?, input.number()?, input.number()?, input.number()?];
    let sound = flags <= (TWO_BYTES | BIG_ENDIAN | SUBTRACTED)
        && (1..=4).contains(&components)
        && (1..=RAW_LEN_MAX).contains(&columns)
        && (1..=RAW_LEN_MAX).contains(&rows)
        && prefix_len <= PREFIX_LEN_MAX
        && (!subtracted || components == 3)
        && (width != SampleWidth::One || mask <= 0xFF);
    if !sound {
        return Err(DecodeError::Header);
    }
    let layout = Layout { width, components, columns, mask, subtracted };
    // Each factor is at most 2^20: no overflow in 64 bits.
    let declared = (layout.row_len() as u64) * (rows as u64) + prefix_len as u64 + tail_len as u64;
    if declared != raw_len as u64 {
        return Err(DecodeError::Length);
    }
    let (prefix, tail) = (input.bytes(prefix_len)?, input.bytes(tail_len)?);
    let frequencies = read_frequencies(&mut input)?;
    let bits = input.bytes(bits_len)?;
    let rows = u32::try_from(rows).map_err(|_| DecodeError::Header)?;
    Ok(Coded::Rows(Rows { layout, prefix, rows, tail, frequencies, bits }, input.0))
}

/// For each context how many tokens have one, then each in one byte or, with the upper bit set, two.
fn write_frequencies(all: &Frequencies, out: &mut Vec<u8>) {
    for frequencies in all {
        let used = frequencies.iter().rposition(|frequency| *frequency > 0).map_or(0, |last| last + 1);
        out.push(u8::try_from(used).unwrap_or(u8::MAX));
        for frequency in frequencies.iter().take(used) {
            let [low, high] = frequency.to_le_bytes();
            match frequency {
                0..0x80 => out.push(low),
                _ => out.extend_from_slice(&[low | 0x80, high << 1 | low >> 7]),
            }
        }
    }
}

fn read_frequencies(input: &mut Input<'_>) -> Result<Box<Frequencies>, DecodeError> {
    let mut all = Box::new([[0; TOKENS]; CONTEXTS]);
    for frequencies in all.iter_mut() {
        let used = usize::from(input.byte()?);
        for frequency in frequencies.get_mut(..used).ok_or(DecodeError::Frequencies)? {
            let first = u16::from(input.byte()?);
            *frequency = if first < 0x80 { first } else { first & 0x7F | u16::from(input.byte()?) << 7 };
            if first >= 0x80 && *frequency < 0x80 {
                return Err(DecodeError::Frequencies);
            }
        }
        if used > 0 && frequencies[used - 1] == 0 {
            return Err(DecodeError::Frequencies);
        }
    }
    Ok(all)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.bytes(1)?[0])
    }

    fn number(&mut self) -> Result<usize, DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk::<4>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*bytes) as usize)
    }
}

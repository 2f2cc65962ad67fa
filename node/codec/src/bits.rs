//! Bits in a row of bytes, the lowest first. Neither side branches on how many bits there are.

use crate::DecodeError;

/// What one store writes beyond the bits that count, and one load reads.
const SLACK: usize = 8;

/// Appends bits to a buffer of a fixed size.
#[derive(Debug)]
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    at: usize,
    pending: u64,
    count: u32,
}

impl BitWriter {
    /// For at most `len_max` bytes.
    pub(crate) fn new(len_max: usize) -> Self {
        Self { bytes: vec![0; len_max + SLACK], at: 0, pending: 0, count: 0 }
    }

    /// Appends the lowest `count` bits of `bits`, at most 16; those above must be zero. Not more than 56 bits
    /// between two calls of [`BitWriter::flush`].
    #[inline(always)]
    pub(crate) fn put(&mut self, bits: u16, count: u32) {
        self.pending |= u64::from(bits) << self.count;
        self.count += count;
    }

    /// Writes the whole bytes of what was put.
    #[inline(always)]
    pub(crate) fn flush(&mut self) {
        if let Some(out) = self.bytes.get_mut(self.at..self.at + SLACK) {
            out.copy_from_slice(&self.pending.to_le_bytes());
        }
        self.at += (self.count / 8) as usize;
        self.pending >>= self.count & !7;
        self.count %= 8;
    }

    /// The bytes, the last one filled with zeros.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.at + usize::from(self.count > 0));
        self.bytes
    }
}

/// Takes bits again. Behind the end come zeros, which [`BitReader::finish`] tells.
#[derive(Debug)]
pub(crate) struct BitReader {
    bytes: Vec<u8>,
    at: usize,
    pending: u64,
    count: u32,
}

impl BitReader {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self { bytes: [bytes, &[0; SLACK]].concat(), at: 0, pending: 0, count: 0 }
    }

    /// Makes at least 56 bits ready to take.
    #[inline(always)]
    pub(crate) fn refill(&mut self) {
        if let Some(&eight) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk()) {
            self.pending |= u64::from_le_bytes(eight) << self.count;
        }
        self.at += ((63 - self.count) / 8) as usize;
        self.count |= 56;
    }

    /// The next `count` bits, at most 16, of those made ready.
    #[inline(always)]
    pub(crate) fn take(&mut self, count: u32) -> u16 {
        let bits = self.pending & ((1 << count) - 1);
        self.pending >>= count;
        self.count -= count;
        (bits & 0xFFFF) as u16
    }

    /// That exactly the bits that were written have been taken.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        let taken = 8 * self.at - self.count as usize;
        let len = self.bytes.len() - SLACK;
        let filling = taken.div_ceil(8) == len && (taken.is_multiple_of(8) || self.bytes[len - 1] >> (taken % 8) == 0);
        if filling { Ok(()) } else { Err(DecodeError::Bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_back_and_one_more_or_less_is_noticed() {
        let written: Vec<(u16, u32)> =
            (0..1000_u32).map(|n| (((n * 40_503) & ((1 << (n % 13)) - 1) & 0xFFFF) as u16, n % 13)).collect();
        let mut writer = BitWriter::new(2000);
        for (bits, count) in &written {
            writer.put(*bits, *count);
            writer.flush();
        }
        let bytes = writer.finish();
        let read = |bytes: &[u8], leave: usize| {
            let mut reader = BitReader::new(bytes);
            for (bits, count) in &written[leave..] {
                reader.refill();
                assert!(leave > 0 || reader.take(*count) == *bits || bytes.len() < 700);
            }
            reader.finish()
        };
        assert_eq!(read(&bytes, 0), Ok(()));
        assert_eq!(read(&[&bytes[..], &[0]].concat(), 0), Err(DecodeError::Bits));
        assert_eq!(read(&bytes[..bytes.len() - 1], 0), Err(DecodeError::Bits));
    }
}

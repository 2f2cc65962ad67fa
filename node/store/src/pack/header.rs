//! The header of a pack: which one it is, on which day the retention of its content ends, and its secret.
//!
//! Written twice, half a block apart, so that one damaged sector does not cost the pack. The *salt* is
//! random and repeated in every record header: a resynchronising scan looks for it, and a data set
//! crafted to contain a record cannot know it.

use bytes::Bytes;
use maillage_host::UnixMillis;

use super::PackId;

/// Bytes before the first record: one block.
pub(crate) const HEADER_BYTES: u64 = HEADER_LEN as u64;
/// The same, as a length in memory.
pub(crate) const HEADER_LEN: usize = 4096;
/// Where the second copy lies.
const SECOND_COPY: usize = 2048;
const MAGIC: [u8; 8] = *b"MAILPACK";
const VERSION: u8 = 2;
/// Of packs whose day was the day of reception; what they hold ends [`USUAL_DAYS`] later.
const VERSION_OF_RECEPTION: u8 = 1;
const USUAL_DAYS: u64 = 90;
/// magic 8, version 1, zero 3, generation 4, number 8, day 8, created 8, salt 8, CRC32 4.
const COPY_BYTES: usize = 52;

/// A pack's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackHeader {
    pub(crate) id: PackId,
    /// When the retention of what it holds is expected to end, in days since 1970-01-01, UTC.
    pub(crate) day: u64,
    pub(crate) created_at: UnixMillis,
    pub(crate) salt: [u8; 8],
}

/// Why the beginning of a file is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Neither copy is intact.
    Damaged,
    /// Intact, but of a version that this software does not know.
    Version,
}

impl PackHeader {
    /// The first [`HEADER_BYTES`] of the file.
    pub(crate) fn encode(&self) -> Bytes {
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&[VERSION, 0, 0, 0]);
        copy.extend_from_slice(&self.id.generation.to_le_bytes());
        copy.extend_from_slice(&self.id.number.to_le_bytes());
        copy.extend_from_slice(&self.day.to_le_bytes());
        copy.extend_from_slice(&self.created_at.0.to_le_bytes());
        copy.extend_from_slice(&self.salt);
        copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
        let mut block = vec![0; HEADER_LEN];
        block[..copy.len()].copy_from_slice(&copy);
        block[SECOND_COPY..SECOND_COPY + copy.len()].copy_from_slice(&copy);
        block.into()
    }

    /// Reads the first intact copy.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let copies = [0, SECOND_COPY].map(|at| Self::decode_copy(block.get(at..).unwrap_or_default()));
        match copies {
            [Ok(header), _] | [_, Ok(header)] => Ok(header),
            [Err(HeaderError::Version), _] | [_, Err(HeaderError::Version)] => Err(HeaderError::Version),
            _ => Err(HeaderError::Damaged),
        }
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderError> {
        let (body, crc) = copy.split_at_checked(COPY_BYTES - 4).ok_or(HeaderError::Damaged)?;
        let crc_matches = crc.first_chunk().is_some_and(|crc| u32::from_le_bytes(*crc) == crc32fast::hash(body));
        if !crc_matches || !body.starts_with(&MAGIC) {
            return Err(HeaderError::Damaged);
        }
        let later = match body[8] {
            VERSION => 0,
            VERSION_OF_RECEPTION => USUAL_DAYS,
            _ => return Err(HeaderError::Version),
        };
        let generation: [u8; 4] = field(body, 12)?;
        Ok(Self {
            id: PackId { number: u64::from_le_bytes(field(body, 16)?), generation: u32::from_le_bytes(generation) },
            day: u64::from_le_bytes(field(body, 24)?).saturating_add(later),
            created_at: UnixMillis(u64::from_le_bytes(field(body, 32)?)),
            salt: field(body, 40)?,
        })
    }
}

fn field<const N: usize>(body: &[u8], at: usize) -> Result<[u8; N], HeaderError> {
    body.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(HeaderError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_damaged_copy_is_survived_and_two_are_noticed() {
        let header = PackHeader {
            id: PackId { number: 7, generation: 0 },
            day: 20_000,
            created_at: UnixMillis(1_728_000_000_000),
            salt: *b"saltsalt",
        };
        let block = header.encode();
        assert_eq!(block.len() as u64, HEADER_BYTES);
        for at in 0..block.len() {
            let mut flipped = block.to_vec();
            flipped[at] ^= 1;
            assert_eq!(PackHeader::decode(&flipped), Ok(header), "byte {at}");
        }
        let mut both = block.to_vec();
        both[30] ^= 1;
        both[SECOND_COPY + 45] ^= 1;
        assert_eq!(PackHeader::decode(&both), Err(HeaderError::Damaged));
        assert_eq!(PackHeader::decode(&block[..20]), Err(HeaderError::Damaged));
    }
}

//! The header of a record, 64 bytes before its payload.
//!
//! ```text
//!  0 magic "MaRe"   4 version   5 kind   6 zero 2   8 salt of the pack 8
//! 16 synced before 8: every byte of the pack below it was durable when this record was written
//! 24 BLAKE3 of the payload 32   56 length of the payload 4   60 CRC32 of all before and of the offset
//! ```
//! All integers little endian. *Synced before* is what tells a torn tail from rot: bytes below the
//! greatest one seen in a pack were acknowledged, whatever they look like now. The offset goes into
//! the CRC so that a record found elsewhere than where it was written is no record.

use super::header::HEADER_BYTES;
use crate::hash::Hash;
use crate::manifest::STUDY_MANIFEST_BYTES_MAX;

/// Bytes of a record's header.
pub(crate) const RECORD_HEADER_BYTES: u64 = RECORD_HEADER_LEN as u64;
/// The same, as a length in memory.
pub(crate) const RECORD_HEADER_LEN: usize = 64;
pub(super) const MAGIC: [u8; 4] = *b"MaRe";
const VERSION: u8 = 1;

/// What a record holds. The numbers are persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A piece of a data set.
    Chunk,
    /// A manifest of an instance or a study.
    Manifest,
    /// An instance entered the library.
    InstanceCommit,
    /// A study manifest began or ceased to be held completely.
    Hold,
    /// The pack ends here, whole.
    Seal,
    /// Nothing any more: what lay here was purged and overwritten with zeroes.
    Void,
    /// A whole data set that is still to be cut. In files of the landing alone.
    Landed,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Chunk, Self::Manifest, Self::InstanceCommit, Self::Hold, Self::Seal, Self::Void, Self::Landed];

    fn code(self) -> u8 {
        match self {
            Self::Chunk => 1,
            Self::Manifest => 2,
            Self::InstanceCommit => 3,
            Self::Hold => 4,
            Self::Seal => 5,
            Self::Void => 6,
            Self::Landed => 7,
        }
    }
}

/// The longest payload of any record, in bytes: no damaged or hostile header makes us read more.
const PAYLOAD_BYTES_MAX: usize = STUDY_MANIFEST_BYTES_MAX;

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: Kind,
    pub(crate) synced_before: u64,
    pub(crate) hash: Hash,
    pub(crate) len: u32,
}

impl RecordHeader {
    /// The bytes for a record at `offset` of the pack with `salt`.
    pub(crate) fn encode(&self, salt: [u8; 8], offset: u64) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind.code();
        bytes[8..16].copy_from_slice(&salt);
        bytes[16..24].copy_from_slice(&self.synced_before.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.hash.0);
        bytes[56..60].copy_from_slice(&self.len.to_le_bytes());
        let crc = checksum(&bytes[..60], offset);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header found at `offset`; `None` when it is not one of this pack at this place.
    pub(crate) fn decode(bytes: &[u8], salt: [u8; 8], offset: u64) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER_LEN] = bytes.first_chunk()?;
        let crc = u32::from_le_bytes(*bytes[60..].first_chunk()?);
        let framed = bytes.starts_with(&MAGIC) && bytes[4] == VERSION && bytes[8..16] == salt;
        if !framed || crc != checksum(&bytes[..60], offset) {
            return None;
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.code() == bytes[5])?;
        let synced_before = u64::from_le_bytes(*bytes[16..].first_chunk()?);
        let len = u32::from_le_bytes(*bytes[56..].first_chunk()?);
        let plausible = (HEADER_BYTES..=offset).contains(&synced_before) && len as usize <= PAYLOAD_BYTES_MAX;
        plausible.then_some(Self { kind, synced_before, hash: Hash(*bytes[24..].first_chunk()?), len })
    }

    /// Bytes of the header and the payload.
    pub(crate) fn record_len(&self) -> u64 {
        RECORD_HEADER_BYTES + u64::from(self.len)
    }
}

/// The salt that the bytes claim, if they begin like a record: the last resort when a pack's header
/// is damaged. To be used only for the first record, whose place no stranger chooses.
pub(crate) fn claimed_salt(bytes: &[u8]) -> Option<[u8; 8]> {
    bytes.starts_with(&MAGIC).then(|| bytes.get(8..)?.first_chunk().copied())?
}

fn checksum(bytes: &[u8], offset: u64) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(bytes);
    crc.update(&offset.to_le_bytes());
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; 8] = *b"saltsalt";

    #[test]
    fn a_header_is_valid_only_unchanged_in_its_pack_and_place() {
        for kind in Kind::ALL {
            let header = RecordHeader { kind, synced_before: 5_000, hash: Hash::of(b"x"), len: 70_000 };
            let bytes = header.encode(SALT, 6_000);
            assert_eq!(RecordHeader::decode(&bytes, SALT, 6_000), Some(header));
            assert_eq!(RecordHeader::decode(&bytes, SALT, 6_001), None, "elsewhere");
            assert_eq!(RecordHeader::decode(&bytes, *b"saltsalT", 6_000), None, "another pack");
            for bit in 0..8 * bytes.len() {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(RecordHeader::decode(&flipped, SALT, 6_000), None, "bit {bit}");
            }
        }
        assert_eq!(RecordHeader::decode(&[0; 64], SALT, 6_000), None);
        assert_eq!(RecordHeader::decode(&[], SALT, 6_000), None);
    }

    #[test]
    fn an_implausible_length_or_history_is_refused() {
        let header = RecordHeader { kind: Kind::Chunk, synced_before: 6_001, hash: Hash::of(b"x"), len: 1 };
        assert_eq!(RecordHeader::decode(&header.encode(SALT, 6_000), SALT, 6_000), None);
        let header =
            RecordHeader { synced_before: 5_000, len: u32::try_from(PAYLOAD_BYTES_MAX).expect("small") + 1, ..header };
        assert_eq!(RecordHeader::decode(&header.encode(SALT, 6_000), SALT, 6_000), None);
    }
}
